// Sums by look-up. For every four inputs there is a table of the 16 sums that four signs can make of
// them; a nibble of a unit's weights then picks its sum, and one vector addition does four inputs of
// every lane. Where a table of 256 sums still fits the first-level cache, bytes pick instead of nibbles:
// such a sum is that of two nibbles, so that the numbers do not depend on the choice.
//
// A panel is 32 inputs: half a word of weights, eight tables of nibbles or four of bytes. Inputs past
// the last count as 0, so that the weights' pad bits do not matter.

constexpr int PANEL = 32;

// The 16 signed sums of four inputs, entry e having +x_i where bit i of e is set: the second two plus
// the first two. Sums of infinities are formed as IEEE 754 has it, never by differences of entries.
template <class L>
inline void signed_sums(const L x[4], L table[16]) {
    const L low[4] = {-x[0] - x[1], x[0] - x[1], x[1] - x[0], x[0] + x[1]};
    const L high[4] = {-x[2] - x[3], x[2] - x[3], x[3] - x[2], x[2] + x[3]};
    for (int h = 0; h < 4; ++h)
        for (int l = 0; l < 4; ++l) table[4 * h + l] = low[l] + high[h];
}

// The tables of bytes, each from its two tables of nibbles.
template <class L>
inline void widen_tables(const L nibbles[8][16], L* tables) {
    for (int byte = 0; byte < 4; ++byte)
        for (int high = 0; high < 16; ++high)
            for (int low = 0; low < 16; ++low)
                tables[256 * byte + 16 * high + low] =
                    nibbles[2 * byte][low] + nibbles[2 * byte + 1][high];
}

// One unit's sum over a panel.
template <int BITS, class L>
inline L look_up(const L* tables, uint32_t weights) {
    if constexpr (BITS == 8) {
        L sum = tables[weights & 255];
        sum = sum + tables[256 + (weights >> 8 & 255)];
        sum = sum + tables[512 + (weights >> 16 & 255)];
        return sum + tables[768 + (weights >> 24)];
    } else {
        L sum = tables[weights & 15] + tables[16 + (weights >> 4 & 15)];
        sum = sum + (tables[32 + (weights >> 8 & 15)] + tables[48 + (weights >> 12 & 15)]);
        sum = sum + (tables[64 + (weights >> 16 & 15)] + tables[80 + (weights >> 20 & 15)]);
        return sum + (tables[96 + (weights >> 24 & 15)] + tables[112 + (weights >> 28)]);
    }
}

// Bytes pay when many units share the tables and the tables fit.
template <class L>
inline bool by_bytes(int64_t units) {
    return 4 * 256 * sizeof(L) <= TABLE_BYTES && units >= 128;
}

template <class T, int LANES>
inline void panel_tables(const T* const* inputs, int64_t count, bool bytes, Lanes<T, LANES>* tables) {
    typedef Lanes<T, LANES> L;
    L nibbles[8][16];
    L(*into)[16] = bytes ? nibbles : reinterpret_cast<L(*)[16]>(tables);
    for (int group = 0; group < 8; ++group) {
        L x[4];
        for (int i = 0; i < 4; ++i)
            x[i] = 4 * group + i < count ? L::load(inputs[4 * group + i]) : L::zero();
        signed_sums(x, into[group]);
    }
    if (bytes) widen_tables(nibbles, tables);
}

template <int BITS, int LANES>
inline void add_panel(const Lanes<float, LANES>* tables, const uint64_t* words, int shift,
                      int64_t units, float* out) {
    typedef Lanes<float, LANES> L;
    for (int64_t n = 0; n < units; ++n, out += LANES)
        (L::load(out) + look_up<BITS>(tables, uint32_t(words[n] >> shift))).store(out);
}

template <int LANES>
void sum_real_lanes(const float* const* inputs, int64_t count, const uint64_t* words, int64_t stride,
                    int64_t units, float* out, void* scratch) {
    typedef Lanes<float, LANES> L;
    L* tables = static_cast<L*>(scratch);
    const bool bytes = by_bytes<L>(units);
    for (int64_t i = 0; i < units * LANES; ++i) out[i] = 0.0f;
    for (int64_t k = 0; k < count; k += PANEL) {
        panel_tables<float, LANES>(inputs + k, count - k, bytes, tables);
        const uint64_t* column = words + k / 64 * stride;
        if (bytes)
            add_panel<8, LANES>(tables, column, int(k % 64), units, out);
        else
            add_panel<4, LANES>(tables, column, int(k % 64), units, out);
    }
}

void sum_real(const float* const* inputs, int64_t count, int lanes, const uint64_t* words,
              int64_t stride, int64_t units, float* out, void* tables) {
    switch (lanes) {
        case 8: return sum_real_lanes<8>(inputs, count, words, stride, units, out, tables);
        case 16: return sum_real_lanes<16>(inputs, count, words, stride, units, out, tables);
        default: return sum_real_lanes<32>(inputs, count, words, stride, units, out, tables);
    }
}
