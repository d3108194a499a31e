// Decisions about sums: whether a sum reaches its threshold.
//
// Of real inputs the sums that count are those of float64, in the order of tables.inl. They are computed in
// float32, and in float64 only where that could decide otherwise. A float32 sum of K inputs is off by at most
// m u / (1 - m u) sum_k |x_k|, with u = 2^-24 and m = 6 + K/32 the additions that an input passes through
// (Higham 2002, section 4.2); the float64 sum by far less. Thresholds are compared in float32 too, and are off
// by u |t|. Sums that are not finite, or too near their thresholds, are computed again.
//
// Of signs the sums are whole numbers of 16 bits, and the thresholds are made such numbers.

// What share of the sum of their sizes float32 sums may be off by. That sum may itself be short by count u.
inline float share_of(int64_t count) {
    const double unit = 1.0 / (1 << 24), additions = double(7 + ceil_div(count, PANEL));
    return float(count < (1 << 22) ? 1.02 * additions * unit / (1.0 - double(count) * unit) : 1e30);
}

// Bounds of all lanes on what float32 may be off by: a little more than the formula, which leaves room for
// the rounding of all that is compared with them.
template <int LANES>
inline void error_bounds(const float* const* inputs, int64_t count, float* bounds) {
    typedef Lanes<float, LANES> L;
    L total = L::zero();
    for (int64_t k = 0; k < count; ++k) {
        const L x = L::load(inputs[k]);
        for (int i = 0; i < L::COUNT; ++i) total.v[i] += x.v[i] < 0.0f ? -x.v[i] : x.v[i];
    }
    total.store(bounds);
    for (int r = 0; r < LANES; ++r) bounds[r] *= share_of(count);
}

// The sum of one unit, in float64, of inputs x(k).
template <class Inputs>
inline double sum_in_double(const Inputs& inputs, int64_t count, Bits bits, int64_t unit) {
    double total = 0.0;
    for (int64_t k = 0; k < count; k += PANEL) {
        const uint64_t word = bits.words[k / 64 * bits.stride + unit] >> k % 64;
        double group[8];
        for (int g = 0; g < 8; ++g) {
            double x[4];
            for (int i = 0; i < 4; ++i) {
                const int64_t at = 4 * g + i;
                const double value = k + at < count ? double(inputs(k + at)) : 0.0;
                x[i] = word >> at & 1 ? value : -value;
            }
            group[g] = (x[0] + x[1]) + (x[2] + x[3]);
        }
        double panel = group[0] + group[1];
        for (int g = 2; g < 8; g += 2) panel = panel + (group[g] + group[g + 1]);
        total = total + panel;
    }
    return total;
}

// Of a unit: +1 or -1, or what stands for a sum that is not a number.
template <class Inputs>
inline int8_t decided(const Inputs& inputs, int64_t count, float bound, Bits bits, int64_t unit,
                      const RealDecisions& decisions) {
    // Inputs that are all 0 have the sum 0.
    const double sum = bound == 0.0f ? 0.0 : sum_in_double(inputs, count, bits, unit);
    const double t = decisions.t[unit], d = decisions.d[unit];
    if (sum != sum) {
        const bool marked = decisions.marks == Marks::ALL || (decisions.marks == Marks::RISING && !(d < 0.0));
        return marked ? NOT_A_NUMBER : -1;
    }
    return (d < 0.0 ? sum <= t : d > 0.0 ? sum >= t : true) ? 1 : -1;
}

template <int LANES>
void decide_lanes(const float* const* inputs, int64_t count, Bits bits, RealDecisions decisions, int8_t* out,
                  int64_t step, float* sums, float* partial, void* tables) {
    float bounds[LANES];
    error_bounds<LANES>(inputs, count, bounds);
    sum_real_lanes<float, LANES>(inputs, count, bits, {sums, LANES, partial}, tables);
    for (int64_t n = 0; n < bits.units; ++n, sums += LANES, out += step) {
        const float t = decisions.near[n], margin = decisions.margin[n], toward = decisions.toward[n];
        int8_t found[LANES];
        int32_t unsure = 0;
        for (int r = 0; r < LANES; ++r) {
            const float over = (sums[r] - t) * toward;
            found[r] = over >= 0.0f ? 1 : -1;
            unsure |= __builtin_fabsf(over) > bounds[r] + margin ? 0 : 1;
        }
        if (unsure)
            for (int r = 0; r < LANES; ++r)
                if (!(__builtin_fabsf(sums[r] - t) > bounds[r] + margin))
                    found[r] = decided([=](int64_t k) { return inputs[k][r]; }, count, bounds[r], bits, n,
                                       decisions);
        __builtin_memcpy(out, found, LANES);
    }
}

void decide(const float* const* inputs, int64_t count, int lanes, Bits bits, RealDecisions decisions,
            int8_t* out, int64_t step, float* sums, float* partial, void* tables) {
    switch (lanes) {
        case 8:
            return decide_lanes<8>(inputs, count, bits, decisions, out, step, sums, partial, tables);
        case 16:
            return decide_lanes<16>(inputs, count, bits, decisions, out, step, sums, partial, tables);
        default:
            return decide_lanes<32>(inputs, count, bits, decisions, out, step, sums, partial, tables);
    }
}

// One row, of which the sums are there.
void decide_row(const float* x, int64_t count, Bits bits, RealDecisions decisions, const float* sums,
                int8_t* out) {
    float total = 0.0f;  // in any order: the bound has room
    for (int64_t k = 0; k < count; ++k) total += __builtin_fabsf(x[k]);
    const float bound = total * share_of(count);
    for (int64_t n = 0; n < bits.units; ++n)
        out[n] = (sums[n] - decisions.near[n]) * decisions.toward[n] >= 0.0f ? 1 : -1;
    for (int64_t n = 0; n < bits.units; ++n)
        if (!(__builtin_fabsf(sums[n] - decisions.near[n]) > bound + decisions.margin[n]))
            out[n] = decided([=](int64_t k) { return x[k]; }, count, bound, bits, n, decisions);
}

void decide_sign_row(const float* sums, int64_t units, WholeDecisions decisions, int8_t* out) {
    for (int64_t n = 0; n < units; ++n) {
        const int reached = sums[n] >= float(decisions.limit[n]) ? -1 : 0;
        out[n] = int8_t(~(reached ^ decisions.turned[n]) | 1);
    }
}

template <int LANES>
void decide_sign_lanes(const uint8_t* const* inputs, int64_t count, Bits bits, WholeDecisions decisions,
                       int8_t* out, int64_t step, int16_t* partial, void* scratch) {
    typedef Widened<uint8_t, int16_t, LANES> W;
    typedef typename W::Wide Wide;
    typedef typename W::Raised Raised;
    sum_words<LANES>(inputs, count, bits, partial, static_cast<Lanes<uint8_t, LANES>*>(scratch));
    for (int64_t n = 0; n < bits.units; ++n, partial += LANES, out += step) {
        const Wide limit = Wide{} + decisions.limit[n], turned = Wide{} + decisions.turned[n];
        typename W::Narrow found;
        for (int i = 0; i < W::Narrow::COUNT; ++i) {
            const Wide* sums = reinterpret_cast<const Wide*>(partial) + 2 * i;
            // -1 where the limit is reached, turned round or not; then +1 and -1.
            const Wide low = (sums[0] >= limit) ^ turned, high = (sums[1] >= limit) ^ turned;
            const Raised even = reinterpret_cast<Raised>(~low | 1) & 255;
            found.v[i] = reinterpret_cast<typename W::Narrow::Vector>(
                even | reinterpret_cast<Raised>(~high | 1) << 8);
        }
        found.store(reinterpret_cast<uint8_t*>(out));
    }
}

void decide_sign(const int8_t* const* inputs, int64_t count, int lanes, Bits bits, WholeDecisions decisions,
                 int8_t* out, int64_t step, int16_t* partial, void* tables) {
    const uint8_t* const* raised = reinterpret_cast<const uint8_t* const*>(inputs);
    switch (lanes) {
        case 8:
            return decide_sign_lanes<8>(raised, count, bits, decisions, out, step, partial, tables);
        case 16:
            return decide_sign_lanes<16>(raised, count, bits, decisions, out, step, partial, tables);
        default:
            return decide_sign_lanes<32>(raised, count, bits, decisions, out, step, partial, tables);
    }
}
