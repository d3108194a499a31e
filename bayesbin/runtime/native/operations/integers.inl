// Sums by look-up in integers: tables of narrow numbers, added up exactly in wide ones. The narrow ones are
// signed numbers in the registers of unsigned ones.

template <class T>
struct Unsigned;
template <>
struct Unsigned<int16_t> { typedef uint16_t type; };
template <>
struct Unsigned<int32_t> { typedef uint32_t type; };

// Lanes of WIDE numbers made of the even and of the odd lanes of a narrow vector: two shifts widen all
// lanes without moving any across a register. `in_order` undoes that.
template <class NARROW, class WIDE, int LANES>
struct Widened {
    typedef Lanes<NARROW, LANES> Narrow;
    static constexpr int HALF = Narrow::WIDTH / 2;
    static constexpr int SHIFT = 8 * int(sizeof(NARROW));
    typedef typename VectorOf<WIDE, HALF>::type Wide;

    typedef typename VectorOf<typename Unsigned<WIDE>::type, HALF>::type Raised;

    static void add(const Narrow& sum, WIDE* to) {
        Wide* into = reinterpret_cast<Wide*>(to);
        for (int i = 0; i < Narrow::COUNT; ++i) {
            const Raised both = reinterpret_cast<Raised>(sum.v[i]);
            into[2 * i] += reinterpret_cast<Wide>(both << SHIFT) >> SHIFT;
            into[2 * i + 1] += reinterpret_cast<Wide>(both) >> SHIFT;
        }
    }

    // Numbers in the order of the wide sums, put into the order of the lanes.
    static void in_order(const float* wide, float* out) {
        for (int i = 0; i < LANES; i += Narrow::WIDTH)
            for (int e = 0; e < HALF; ++e) {
                out[i + 2 * e] = wide[i + e];
                out[i + 2 * e + 1] = wide[i + HALF + e];
            }
    }
    static void out_of_order(const float* lanes, float* out) {
        for (int i = 0; i < LANES; i += Narrow::WIDTH)
            for (int e = 0; e < HALF; ++e) {
                out[i + e] = lanes[i + 2 * e];
                out[i + HALF + e] = lanes[i + 2 * e + 1];
            }
    }
};

template <int BITS, class NARROW, class WIDE, int LANES>
inline void add_panel_widened(const Lanes<NARROW, LANES>* tables, const uint64_t* words, int shift,
                              int64_t units, WIDE* partial) {
    for (int64_t n = 0; n < units; ++n, partial += LANES)
        Widened<NARROW, WIDE, LANES>::add(
            look_up<BITS>(tables, uint32_t(words[n] >> shift)), partial);
}

// Add a word's sums, two panels', which are at most 64 and fit 8 bits, to 16-bit numbers. Bytes pick the
// sums where lanes are few; with many, nibbles are as fast for many units and faster for few.
template <int LANES>
inline void add_word(const uint8_t* const* inputs, int64_t count, const uint64_t* words, int64_t units,
                     int16_t* partial, Lanes<uint8_t, LANES>* tables) {
    if (LANES == FEWEST_LANES && by_bytes<Lanes<uint8_t, LANES>>(units)) {
        for (int k = 0; k < 64 && k < count; k += PANEL) {
            panel_tables<uint8_t, LANES>(inputs + k, count - k, true, tables);
            add_panel_widened<8, uint8_t, int16_t, LANES>(tables, words, k, units, partial);
        }
        return;
    }
    Lanes<uint8_t, LANES>* more = tables + PANEL / 4 * 16;  // the second panel's
    panel_tables<uint8_t, LANES>(inputs, count, false, tables);
    panel_tables<uint8_t, LANES>(inputs + PANEL, count - PANEL, false, more);
    for (int64_t n = 0; n < units; ++n, partial += LANES)
        Widened<uint8_t, int16_t, LANES>::add(
            look_up<4>(tables, uint32_t(words[n])) + look_up<4>(more, uint32_t(words[n] >> 32)), partial);
}

// 16-bit sums, in the order of the wide ones, of at most MOST_SIGNS inputs.
template <int LANES>
inline void sum_words(const uint8_t* const* inputs, int64_t count, Bits bits, int16_t* partial,
                      Lanes<uint8_t, LANES>* tables) {
    for (int64_t i = 0; i < bits.units * LANES; ++i) partial[i] = 0;
    for (int64_t k = 0; k < count; k += 64)
        add_word<LANES>(inputs + k, count - k, bits.words + k / 64 * bits.stride, bits.units, partial, tables);
}

// Signs: sums of 16 bits, in the memory of the partial sums; their sum is exact in float up to 2^24 inputs.
template <int LANES>
void sum_sign_lanes(const uint8_t* const* inputs, int64_t count, Bits bits, SumsOut<float> out,
                    void* scratch) {
    int16_t* partial = reinterpret_cast<int16_t*>(out.partial);
    for (int64_t start = 0; start < count; start += MOST_SIGNS) {
        const int64_t some = start + MOST_SIGNS < count ? MOST_SIGNS : count - start;
        const Bits later{bits.words + start / 64 * bits.stride, bits.stride, bits.units};
        sum_words<LANES>(inputs + start, some, later, partial, static_cast<Lanes<uint8_t, LANES>*>(scratch));
        for (int64_t n = 0; n < bits.units; ++n) {
            float wide[LANES], sums[LANES];
            float* to = out.data + n * out.step;
            for (int r = 0; r < LANES; ++r) wide[r] = float(partial[n * LANES + r]);
            Widened<uint8_t, int16_t, LANES>::in_order(wide, sums);
            for (int r = 0; r < LANES; ++r) to[r] = start > 0 ? to[r] + sums[r] : sums[r];
        }
    }
}

void sum_sign(const int8_t* const* inputs, int64_t count, int lanes, Bits bits, SumsOut<float> out,
              void* tables) {
    const uint8_t* const* raised = reinterpret_cast<const uint8_t* const*>(inputs);
    switch (lanes) {
        case 8: return sum_sign_lanes<8>(raised, count, bits, out, tables);
        case 16: return sum_sign_lanes<16>(raised, count, bits, out, tables);
        default: return sum_sign_lanes<32>(raised, count, bits, out, tables);
    }
}
