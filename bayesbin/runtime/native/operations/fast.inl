// Sums by look-up in 16-bit numbers: activations rounded to whole multiples of a row's own step, added
// up exactly.
//
// The step is the smallest with which no sum over a panel can overflow: a table holds
// sum_{w_i = +1} q_i - c with c = floor(sum_i q_i / 2), at most half the panel's L1 norm in size, and
//
//   sum_i w_i q_i = 2 (sum_{w_i = +1} q_i - c) - (sum_i q_i mod 2).
//
// Scaling by the L1 norm of the worst panel, and not by 32 times the largest value, keeps 11 to 12 bits
// of a typical activation. A row with values that are not finite, or so large or small that the step
// would not be, takes the exact sums instead.

constexpr float LARGEST_PANEL = 65000.0f;  // of a panel's L1 norm in steps: half of it fits 16 bits
constexpr float LARGEST_VALUE = 32700.0f;
constexpr float LARGEST_NORM = 1e37f, SMALLEST_NORM = 1e-30f;
constexpr int64_t MOST_INPUTS = 1 << 20;  // up to which the sums of panels fit 32 bits

// What one call works with, laid out in its scratch.
struct FastScratch {
    float *step, *per_step, *parity, *exact;
    int32_t* partial;
    int16_t *q, *c;

    FastScratch(void* scratch, int64_t inputs, int64_t units, int lanes) {
        const int64_t padded = ceil_div(inputs, PANEL) * PANEL;
        step = static_cast<float*>(scratch);
        per_step = step + MAX_LANES;
        parity = per_step + MAX_LANES;
        exact = parity + MAX_LANES;
        partial = reinterpret_cast<int32_t*>(exact + units * lanes);
        q = reinterpret_cast<int16_t*>(partial + units * lanes);
        c = q + padded * lanes;
    }
};

// Steps of all lanes; whether some lane must take the exact sums (its per_step is then negative).
template <int LANES>
inline bool choose_steps(const float* const* inputs, int64_t count, FastScratch& s) {
    float worst[LANES] = {}, total[LANES] = {}, largest[LANES] = {};
    for (int64_t k = 0; k < count; k += PANEL) {
        float norm[LANES] = {};
        for (int64_t i = k; i < count && i < k + PANEL; ++i)
            for (int r = 0; r < LANES; ++r) {
                const float size = __builtin_fabsf(inputs[i][r]);
                norm[r] += size;
                largest[r] = size > largest[r] ? size : largest[r];
            }
        for (int r = 0; r < LANES; ++r) {
            worst[r] = norm[r] > worst[r] ? norm[r] : worst[r];
            total[r] += norm[r];  // NaN shows here, though in no comparison
        }
    }
    bool some_exact = false;
    for (int r = 0; r < LANES; ++r) {
        const float by_norm = LARGEST_PANEL / worst[r], by_value = LARGEST_VALUE / largest[r];
        const bool exact = !(total[r] <= LARGEST_NORM) || count > MOST_INPUTS ||
                           (total[r] > 0.0f && worst[r] < SMALLEST_NORM);
        s.per_step[r] = by_norm < by_value ? by_norm : by_value;
        if (exact || total[r] == 0.0f) s.per_step[r] = 0.0f;
        s.step[r] = s.per_step[r] > 0.0f ? 1.0f / s.per_step[r] : 0.0f;
        if (exact) s.per_step[r] = -1.0f;
        some_exact |= exact;
    }
    return some_exact;
}

// q, c of each group of four, and minus the sum of the groups' parities.
template <int LANES>
inline void quantise(const float* const* inputs, int64_t count, FastScratch& s) {
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    const float zeros[LANES] = {};
    int32_t parity[LANES] = {};
    for (int64_t k = 0; k < ceil_div(count, PANEL) * PANEL; k += 4) {
        int32_t sum[LANES] = {};
        for (int64_t i = k; i < k + 4; ++i) {
            const float* from = i < count ? inputs[i] : zeros;
            int16_t* to = s.q + i * LANES;
            for (int r = 0; r < LANES; ++r) {
                const float x = s.per_step[r] > 0.0f ? from[r] : 0.0f;
                const int32_t q = int32_t((x * s.per_step[r] + ROUND) - ROUND);
                to[r] = int16_t(q);
                sum[r] += q;
            }
        }
        for (int r = 0; r < LANES; ++r) {
            s.c[k / 4 * LANES + r] = int16_t(sum[r] >> 1);
            parity[r] -= sum[r] & 1;
        }
    }
    for (int r = 0; r < LANES; ++r) s.parity[r] = float(parity[r]);
}

// Tables of a panel. Unsigned numbers wrap where a partial sum does not fit; the entries fit.
template <int LANES>
inline void centred_tables(const int16_t* q, const int16_t* c, bool bytes,
                           Lanes<uint16_t, LANES>* tables) {
    typedef Lanes<uint16_t, LANES> L;
    typedef typename L::Vector V;
    L nibbles[8][16];
    L(*into)[16] = bytes ? nibbles : reinterpret_cast<L(*)[16]>(tables);
    for (int group = 0; group < 8; ++group) {
        const uint16_t* x = reinterpret_cast<const uint16_t*>(q) + 4 * group * LANES;
        const uint16_t* centre = reinterpret_cast<const uint16_t*>(c) + group * LANES;
        const L xs[4] = {L::load(x), L::load(x + LANES), L::load(x + 2 * LANES), L::load(x + 3 * LANES)};
        const L none = L::zero() - L::load(centre);
        for (int i = 0; i < L::COUNT; ++i) {
            const V x0 = xs[0].v[i], x1 = xs[1].v[i], x2 = xs[2].v[i], x3 = xs[3].v[i], n = none.v[i];
            const V low[4] = {V{}, x0, x1, x0 + x1}, high[4] = {n, n + x2, n + x3, n + x2 + x3};
            for (int h = 0; h < 4; ++h)
                for (int l = 0; l < 4; ++l) into[group][4 * h + l].v[i] = low[l] + high[h];
        }
    }
    if (bytes) widen_tables(nibbles, tables);
}

template <int LANES>
void sum_fast_lanes(const float* const* inputs, int64_t count, Bits bits, SumsOut<float> out,
                    void* scratch, void* table_scratch) {
    const int64_t units = bits.units;
    typedef Lanes<uint16_t, LANES> L;
    typedef Widened<uint16_t, int32_t, LANES> Wide;
    FastScratch s(scratch, count, units, LANES);
    L* tables = static_cast<L*>(table_scratch);
    const bool some_exact = choose_steps<LANES>(inputs, count, s);
    const bool bytes = by_bytes<L>(units);
    quantise<LANES>(inputs, count, s);
    for (int64_t i = 0; i < units * LANES; ++i) s.partial[i] = 0;
    for (int64_t k = 0; k < count; k += PANEL) {
        centred_tables<LANES>(s.q + k * LANES, s.c + k / 4 * LANES, bytes, tables);
        const uint64_t* column = bits.words + k / 64 * bits.stride;
        const int shift = int(k % 64);
        if (bytes)
            add_panel_widened<8, uint16_t, int32_t, LANES>(tables, column, shift, units, s.partial);
        else
            add_panel_widened<4, uint16_t, int32_t, LANES>(tables, column, shift, units, s.partial);
    }
    float parity[LANES], step[LANES];  // in the order of the sums
    Wide::out_of_order(s.parity, parity);
    Wide::out_of_order(s.step, step);
    for (int64_t n = 0; n < units; ++n) {
        float sums[LANES];
        for (int r = 0; r < LANES; ++r)
            sums[r] = float((2.0 * s.partial[n * LANES + r] + parity[r]) * step[r]);
        Wide::in_order(sums, out.data + n * out.step);
    }
    if (!some_exact) return;
    sum_real_lanes<float, LANES>(inputs, count, bits, {s.exact, LANES, s.exact}, table_scratch);
    for (int64_t n = 0; n < units; ++n)
        for (int r = 0; r < LANES; ++r)
            if (s.per_step[r] < 0.0f) out.data[n * out.step + r] = s.exact[n * LANES + r];
}

void sum_fast(const float* const* inputs, int64_t count, int lanes, Bits bits, SumsOut<float> out,
              void* scratch, void* tables) {
    switch (lanes) {
        case 8: return sum_fast_lanes<8>(inputs, count, bits, out, scratch, tables);
        case 16: return sum_fast_lanes<16>(inputs, count, bits, out, scratch, tables);
        default: return sum_fast_lanes<32>(inputs, count, bits, out, scratch, tables);
    }
}
