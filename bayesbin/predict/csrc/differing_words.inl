// Differing bits, word by word.

inline void differing(const uint64_t* x0, const uint64_t* x1, const uint64_t* w0, const uint64_t* w1,
                      int64_t count, int64_t bits[4]) {
    for (int64_t i = 0; i < count; ++i) {
        bits[0] += __builtin_popcountll(x0[i] ^ w0[i]);
        bits[1] += __builtin_popcountll(x0[i] ^ w1[i]);
        bits[2] += __builtin_popcountll(x1[i] ^ w0[i]);
        bits[3] += __builtin_popcountll(x1[i] ^ w1[i]);
    }
}
