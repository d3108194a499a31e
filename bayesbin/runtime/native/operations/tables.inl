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
// A register at a time: all the sums of one fit the registers there are.
template <class T, int LANES>
inline void signed_sums(const Lanes<T, LANES> x[4], Lanes<T, LANES> table[16]) {
    typedef typename Lanes<T, LANES>::Vector V;
    for (int i = 0; i < Lanes<T, LANES>::COUNT; ++i) {
        const V a = x[0].v[i], b = x[1].v[i], c = x[2].v[i], d = x[3].v[i];
        const V low[4] = {-a - b, a - b, b - a, a + b}, high[4] = {-c - d, c - d, d - c, c + d};
        for (int h = 0; h < 4; ++h)
            for (int l = 0; l < 4; ++l) table[4 * h + l].v[i] = low[l] + high[h];
    }
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

// Entry e of the nibbles' table `group`, where e are four bits of the weights. Weights come shifted by
// the size of an entry, so that masking them leaves the entry's distance in bytes.
template <class L>
inline const L& entry(const L* tables, uint64_t shifted, int group) {
    const char* table = reinterpret_cast<const char*>(tables + 16 * group);
    return *reinterpret_cast<const L*>(table + (shifted >> 4 * group & 15 * sizeof(L)));
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
        const uint64_t w = uint64_t(weights) * sizeof(L);
        L sum = entry(tables, w, 0) + entry(tables, w, 1);
        sum = sum + (entry(tables, w, 2) + entry(tables, w, 3));
        sum = sum + (entry(tables, w, 4) + entry(tables, w, 5));
        return sum + (entry(tables, w, 6) + entry(tables, w, 7));
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
        signed_sums<T, LANES>(x, into[group]);
    }
    if (bytes) widen_tables(nibbles, tables);
}

// to[n] = from[n] + the unit's sum over the panel, where the sums of units lie `step` apart; the first
// panel starts from zero.
template <int BITS, class T, int LANES>
inline void add_panel(const Lanes<T, LANES>* tables, const uint64_t* words, int shift, int64_t units,
                      const T* from, T* to, int64_t step) {
    typedef Lanes<T, LANES> L;
    if (!from)
        for (int64_t n = 0; n < units; ++n, to += step)
            (L::zero() + look_up<BITS>(tables, uint32_t(words[n] >> shift))).store(to);
    else
        for (int64_t n = 0; n < units; ++n, from += LANES, to += step)
            (L::load(from) + look_up<BITS>(tables, uint32_t(words[n] >> shift))).store(to);
}

template <class T, int LANES>
void sum_real_lanes(const T* const* inputs, int64_t count, Bits bits, SumsOut<T> out, void* scratch) {
    typedef Lanes<T, LANES> L;
    L* tables = static_cast<L*>(scratch);
    const bool bytes = by_bytes<L>(bits.units);
    for (int64_t k = 0; k < count; k += PANEL) {
        panel_tables<T, LANES>(inputs + k, count - k, bytes, tables);
        const uint64_t* column = bits.words + k / 64 * bits.stride;
        const T* from = k > 0 ? out.partial : nullptr;
        const bool last = k + PANEL >= count;
        T* to = last ? out.data : out.partial;
        const int64_t step = last ? out.step : LANES;
        if (bytes)
            add_panel<8, T, LANES>(tables, column, int(k % 64), bits.units, from, to, step);
        else
            add_panel<4, T, LANES>(tables, column, int(k % 64), bits.units, from, to, step);
    }
}

template <class T>
void sum_real(const T* const* inputs, int64_t count, int lanes, Bits bits, SumsOut<T> out, void* tables) {
    switch (lanes) {
        case 8: return sum_real_lanes<T, 8>(inputs, count, bits, out, tables);
        case 16: return sum_real_lanes<T, 16>(inputs, count, bits, out, tables);
        default: return sum_real_lanes<T, 32>(inputs, count, bits, out, tables);
    }
}
