// Sums with real weights, in float64, one input after another, rounded once at the end. An isa defines
// fused(a, b, c) = a b + c of doubles in one register. Products of two float32 numbers are exact in
// float64, so that it makes no difference there whether a product is rounded before it is added; of float64
// numbers it is.

template <bool EXACT, class V>
inline V multiply_add(V a, V b, V c) {
    if constexpr (EXACT)
        return fused(a, b, c);
    else
        return a * b + c;
}

template <class V>
inline V splat(double x) {
    return x - V{};
}

// UNITS units at once: their weights are `count` apart.
template <class T, bool EXACT, int LANES, int UNITS>
inline void weigh_units(const double* const* inputs, int64_t count, const double* weights,
                        const double* bias, T* out, int64_t step) {
    typedef Lanes<double, LANES> L;
    typedef typename L::Vector V;
    L sums[UNITS];
    for (L& sum : sums) sum = L::zero();
    for (int64_t k = 0; k < count; ++k) {
        const L x = L::load(inputs[k]);
        for (int u = 0; u < UNITS; ++u) {
            const V w = splat<V>(weights[u * count + k]);
            for (int i = 0; i < L::COUNT; ++i)
                sums[u].v[i] = multiply_add<EXACT>(x.v[i], w, sums[u].v[i]);
        }
    }
    for (int u = 0; u < UNITS; ++u) {
        double wide[LANES];
        sums[u].store(wide);
        for (int r = 0; r < LANES; ++r) out[u * step + r] = T(bias ? wide[r] + bias[u] : wide[r]);
    }
}

// As many units at once as have their sums in registers.
template <class T, bool EXACT, int LANES>
void weigh_lanes(const double* const* inputs, int64_t count, const double* weights, const double* bias,
                 int64_t units, T* out, int64_t step) {
    constexpr int REGISTERS = NATIVE == 64 ? 24 : NATIVE == 32 ? 12 : 8;
    constexpr int MOST = REGISTERS / Lanes<double, LANES>::COUNT;
    constexpr int UNITS = MOST >= 8 ? 8 : MOST >= 4 ? 4 : MOST >= 2 ? 2 : 1;
    int64_t n = 0;
    for (; n + UNITS <= units; n += UNITS)
        weigh_units<T, EXACT, LANES, UNITS>(inputs, count, weights + n * count, bias ? bias + n : nullptr,
                                     out + n * step, step);
    for (; n < units; ++n)
        weigh_units<T, EXACT, LANES, 1>(inputs, count, weights + n * count, bias ? bias + n : nullptr,
                                 out + n * step, step);
}

template <class T, bool EXACT>
void weigh_any(const double* const* inputs, int64_t count, int lanes, const double* weights,
               const double* bias, int64_t units, T* out, int64_t step) {
    switch (lanes) {
        case 8: return weigh_lanes<T, EXACT, 8>(inputs, count, weights, bias, units, out, step);
        case 16: return weigh_lanes<T, EXACT, 16>(inputs, count, weights, bias, units, out, step);
        default: return weigh_lanes<T, EXACT, 32>(inputs, count, weights, bias, units, out, step);
    }
}

template <class T>
void weigh(bool exact, const double* const* inputs, int64_t count, int lanes, const double* weights,
           const double* bias, int64_t units, T* out, int64_t step) {
    if (exact)
        weigh_any<T, true>(inputs, count, lanes, weights, bias, units, out, step);
    else
        weigh_any<T, false>(inputs, count, lanes, weights, bias, units, out, step);
}
