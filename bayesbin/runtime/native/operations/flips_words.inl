// Flips in plain 64-bit arithmetic: four 16-bit comparisons in each word.

inline uint64_t flips(uint64_t state, const uint16_t* thresholds) {
    constexpr uint64_t HIGH = 0x8000800080008000u;
    uint64_t bits = 0;
    for (int j = 0; j < 16; ++j, state += GAMMA) {
        uint64_t t;
        __builtin_memcpy(&t, thresholds + 4 * j, 8);
        const uint64_t u = mix(state);
        // u - t within each half-word; its high bit, with those of u and t, tells whether u < t.
        const uint64_t difference = ((u | HIGH) - (t & ~HIGH)) ^ ((u ^ ~t) & HIGH);
        const uint64_t less = ((~u & t) | ((~u | t) & difference)) & HIGH;
        bits |= ((less >> 15) * 0x1000200040008000u >> 60) << (4 * j);
    }
    return bits;
}
