// Decisions about sums: whether a sum reaches its threshold. The sums that count are those of float64, in
// the order of tables.inl. They are computed in float32, and in float64 only where that could decide
// otherwise.
//
// A float32 sum of K inputs is off by at most m u / (1 - m u) sum_k |x_k|, with u = 2^-24 and m = 6 + K/32
// the additions that an input passes through (Higham 2002, section 4.2); for the float64 sum u = 2^-53. Sums
// that are not finite, or too near their thresholds, are computed again. Inputs that are all 0 have the sum
// 0 in both.

// Bounds of all lanes on what float32 may be off by: larger than the formula, by the rounding of the
// bounds themselves and of all that is compared with them.
template <int LANES>
inline void error_bounds(const float* const* inputs, int64_t count, double* bounds) {
    float total[LANES] = {};
    for (int64_t k = 0; k < count; ++k)
        for (int r = 0; r < LANES; ++r) total[r] += __builtin_fabsf(inputs[k][r]);
    // The total may itself be short by count u of it.
    const double unit = 1.0 / (1 << 24), additions = double(7 + ceil_div(count, PANEL));
    const double share = count < (1 << 22) ? 1.01 * additions * unit / (1.0 - double(count) * unit) : 1e300;
    for (int r = 0; r < LANES; ++r) bounds[r] = share * double(total[r]);
}

// One lane's sum of one unit, in float64.
inline double sum_in_double(const float* const* inputs, int64_t count, int lane, Bits bits, int64_t unit) {
    double total = 0.0;
    for (int64_t k = 0; k < count; k += PANEL) {
        const uint64_t word = bits.words[k / 64 * bits.stride + unit] >> k % 64;
        double group[8];
        for (int g = 0; g < 8; ++g) {
            double x[4];
            for (int i = 0; i < 4; ++i) {
                const int64_t at = 4 * g + i;
                const double value = k + at < count ? double(inputs[k + at][lane]) : 0.0;
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

inline bool reached(double sum, double t, double d) { return d < 0.0 ? sum <= t : sum >= t; }

template <int LANES>
void decide_lanes(const float* const* inputs, int64_t count, Bits bits, Thresholds thresholds, int8_t* out,
                  int64_t step, float* sums, float* partial, void* tables) {
    double bounds[LANES];
    error_bounds<LANES>(inputs, count, bounds);
    sum_real_lanes<float, LANES>(inputs, count, bits, {sums, LANES, partial}, tables);
    for (int64_t n = 0; n < bits.units; ++n, sums += LANES, out += step) {
        const double d = thresholds.d[n];
        const double t = (d < 0.0) | (d > 0.0) ? thresholds.t[n] : -__builtin_inf();  // d = 0: all reach it
        int unsure = 0;
        for (int r = 0; r < LANES; ++r) {
            const double over = double(sums[r]) - t, toward = d < 0.0 ? -over : over;
            out[r] = toward >= 0.0 ? 1 : -1;
            unsure |= !(__builtin_fabs(over) > bounds[r]) & !(bounds[r] == 0.0);
        }
        if (!unsure) continue;
        for (int r = 0; r < LANES; ++r)
            if (!(__builtin_fabs(double(sums[r]) - t) > bounds[r]))
                out[r] = reached(sum_in_double(inputs, count, r, bits, n), t, d) ? 1 : -1;
    }
}

void decide(const float* const* inputs, int64_t count, int lanes, Bits bits, Thresholds thresholds,
            int8_t* out, int64_t step, float* sums, float* partial, void* tables) {
    switch (lanes) {
        case 8:
            return decide_lanes<8>(inputs, count, bits, thresholds, out, step, sums, partial, tables);
        case 16:
            return decide_lanes<16>(inputs, count, bits, thresholds, out, step, sums, partial, tables);
        default:
            return decide_lanes<32>(inputs, count, bits, thresholds, out, step, sums, partial, tables);
    }
}
