// Steps that touch every number once: plain loops, which the compiler turns into vectors. What is not a
// number comes out of each as it went in.

// A number goes where it came from or elsewhere, never to the place of another.
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

// 1 - 2 / (exp(2|x|) + 1), and near 0 an odd polynomial (Cephes' tanhf and expf); within 2 units in
// the last place, on every isa the same number.
inline void tanh_all(const float* x, float* out, int64_t count) {
    constexpr float ROUND = 12582912.0f;
    INDEPENDENT
    for (int64_t i = 0; i < count; ++i) {
        const float v = x[i], size = __builtin_fabsf(v);
        const float y = size < 10.0f ? 2.0f * size : 20.0f;  // tanh(10) rounds to 1
        const float whole = (y * 1.44269504f + ROUND) - ROUND;
        const float rest = (y - whole * 0.693359375f) + whole * 2.12194440e-4f;
        float e = 1.9875691500e-4f;
        e = e * rest + 1.3981999507e-3f;
        e = e * rest + 8.3334519073e-3f;
        e = e * rest + 4.1665795894e-2f;
        e = e * rest + 1.6666665459e-1f;
        e = e * rest + 5.0000001201e-1f;
        e = e * rest * rest + rest + 1.0f;
        const int32_t exponent = (int32_t(whole) + 127) << 23;
        float power;
        __builtin_memcpy(&power, &exponent, 4);
        const float far = 1.0f - 2.0f / (e * power + 1.0f);
        const float z = v * v;
        float near = -5.70498872745e-3f;
        near = near * z + 2.06390887954e-2f;
        near = near * z - 5.37397155531e-2f;
        near = near * z + 1.33314422036e-1f;
        near = near * z - 3.33332819422e-1f;
        near = near * z * v + v;
        const float signed_far = v < 0.0f ? -far : far;
        const float finite = size < 0.625f ? near : signed_far;
        out[i] = v != v ? v : finite;
    }
}

inline void tanh_all(const double*, double*, int64_t) {}  // never asked for

template <class T>
void unary(Unary op, const T* x, T* out, int64_t count, T a, T b) {
    switch (op) {
        case Unary::RELU:
            INDEPENDENT
            for (int64_t i = 0; i < count; ++i) out[i] = x[i] < T(0) ? T(0) : x[i];
            return;
        case Unary::CLAMP:
            INDEPENDENT
            for (int64_t i = 0; i < count; ++i) {
                const T v = x[i] < a ? a : x[i];
                out[i] = v > b ? b : v;
            }
            return;
        case Unary::LEAKY_RELU:
            INDEPENDENT
            for (int64_t i = 0; i < count; ++i) out[i] = x[i] > T(0) ? x[i] : x[i] * a;
            return;
        case Unary::ABS:
            INDEPENDENT
            for (int64_t i = 0; i < count; ++i) out[i] = x[i] < T(0) ? -x[i] : x[i] + T(0);
            return;
        case Unary::NEG:
            INDEPENDENT
            for (int64_t i = 0; i < count; ++i) out[i] = -x[i];
            return;
        case Unary::TANH: return tanh_all(x, out, count);
    }
}

template <Binary OP, class T>
inline T combined(T a, T b) {
    if constexpr (OP == Binary::ADD) return a + b;
    if constexpr (OP == Binary::SUB) return a - b;
    if constexpr (OP == Binary::MUL) return a * b;
    if constexpr (OP == Binary::MAXIMUM) return (a >= b) | (a != a) ? a : b;
    if constexpr (OP == Binary::MINIMUM) return (a <= b) | (a != a) ? a : b;
}

template <Binary OP, class T>
inline void combine_all(const T* a, const T* b, T* out, int64_t count) {
    INDEPENDENT
    for (int64_t i = 0; i < count; ++i) out[i] = combined<OP>(a[i], b[i]);
}

template <class T>
void binary(Binary op, const T* a, const T* b, T* out, int64_t count) {
    switch (op) {
        case Binary::ADD: return combine_all<Binary::ADD>(a, b, out, count);
        case Binary::SUB: return combine_all<Binary::SUB>(a, b, out, count);
        case Binary::MUL: return combine_all<Binary::MUL>(a, b, out, count);
        case Binary::MAXIMUM: return combine_all<Binary::MAXIMUM>(a, b, out, count);
        case Binary::MINIMUM: return combine_all<Binary::MINIMUM>(a, b, out, count);
    }
}

template <Binary OP, class T>
inline void combine_numbers(const T* x, const T* numbers, bool second, T* out, int64_t count, int64_t lanes) {
    if (lanes == 1) return second ? combine_all<OP>(x, numbers, out, count) : combine_all<OP>(numbers, x, out, count);
    for (int64_t k = 0; k < count; ++k, x += lanes, out += lanes) {
        const T v = numbers[k];
        if (second) {
            INDEPENDENT
            for (int64_t r = 0; r < lanes; ++r) out[r] = combined<OP>(x[r], v);
        } else {
            INDEPENDENT
            for (int64_t r = 0; r < lanes; ++r) out[r] = combined<OP>(v, x[r]);
        }
    }
}

template <class T>
void with_numbers(Binary op, const T* x, const T* numbers, bool second, T* out, int64_t count,
                  int64_t lanes) {
    switch (op) {
        case Binary::ADD: return combine_numbers<Binary::ADD>(x, numbers, second, out, count, lanes);
        case Binary::SUB: return combine_numbers<Binary::SUB>(x, numbers, second, out, count, lanes);
        case Binary::MUL: return combine_numbers<Binary::MUL>(x, numbers, second, out, count, lanes);
        case Binary::MAXIMUM:
            return combine_numbers<Binary::MAXIMUM>(x, numbers, second, out, count, lanes);
        case Binary::MINIMUM:
            return combine_numbers<Binary::MINIMUM>(x, numbers, second, out, count, lanes);
    }
}

// each(x, channel) for every value: channels side by side where the rows are not.
template <class T, class U, class Each>
inline void by_channel(const T* x, U* out, Channels c, const Each& each) {
    for (int64_t o = 0; o < c.outer; ++o) {
        if (c.inner == 1) {
            INDEPENDENT
            for (int64_t n = 0; n < c.channels; ++n) out[n] = each(x[n], n);
            x += c.channels, out += c.channels;
            continue;
        }
        for (int64_t n = 0; n < c.channels; ++n, x += c.inner, out += c.inner)
            INDEPENDENT
            for (int64_t i = 0; i < c.inner; ++i) out[i] = each(x[i], n);
    }
}

template <class T>
void affine(const T* x, const T* slope, const T* shift, T* out, Channels c) {
    by_channel(x, out, c, [=](T v, int64_t n) { return v * slope[n] + shift[n]; });
}

template <class T>
void add_bias(const T* x, const T* bias, T* out, Channels c) {
    by_channel(x, out, c, [=](T v, int64_t n) { return v + bias[n]; });
}

template <class T>
void prelu(const T* x, const T* slope, T* out, Channels c) {
    by_channel(x, out, c, [=](T v, int64_t n) { return v > T(0) ? v : v * slope[n]; });
}

template <class T>
void sign(const T* x, int8_t* out, int64_t count) {
    INDEPENDENT
    for (int64_t i = 0; i < count; ++i) out[i] = x[i] >= T(0) ? 1 : -1;
}

// The float nearest to t of those not on the wrong side of it: at least t, or at most.
inline float rounded_to(double t, bool up) {
    const float nearest = float(t);
    if (up ? double(nearest) < t : double(nearest) > t)
        return __builtin_nextafterf(nearest, up ? __builtin_inff() : -__builtin_inff());
    return nearest;
}
inline double rounded_as(double, double t, bool) { return t; }
inline float rounded_as(float, double t, bool up) { return rounded_to(t, up); }

// A float reaches t where it reaches the nearest float beyond t. Where d is 0, all that are numbers do.
template <class T>
void threshold(const T* x, Thresholds thresholds, int8_t* out, Channels c) {
    for (int64_t o = 0; o < c.outer; ++o)
        for (int64_t n = 0; n < c.channels; ++n, x += c.inner, out += c.inner) {
            const double d = thresholds.d[n];
            const bool down = d < 0.0, all = !down & !(d > 0.0);
            const T t = rounded_as(T(0), all ? -__builtin_inf() : thresholds.t[n], !down);
            if (down) {
                INDEPENDENT
                for (int64_t i = 0; i < c.inner; ++i) out[i] = x[i] <= t ? 1 : -1;
            } else {
                INDEPENDENT
                for (int64_t i = 0; i < c.inner; ++i) out[i] = x[i] >= t ? 1 : -1;
            }
        }
}

template <class T>
void widen(const int8_t* x, T* out, int64_t count) {
    INDEPENDENT
    for (int64_t i = 0; i < count; ++i) out[i] = T(x[i]);
}

void extreme(bool maximum, const int8_t* x, int8_t* into, int64_t count) {
    if (maximum) {
        INDEPENDENT
        for (int64_t i = 0; i < count; ++i) into[i] = x[i] > into[i] ? x[i] : into[i];
    } else {
        INDEPENDENT
        for (int64_t i = 0; i < count; ++i) into[i] = x[i] < into[i] ? x[i] : into[i];
    }
}

void narrow(const double* x, float* out, int64_t count) {
    INDEPENDENT
    for (int64_t i = 0; i < count; ++i) out[i] = float(x[i]);
}

void extend(const float* x, double* out, int64_t count) {
    INDEPENDENT
    for (int64_t i = 0; i < count; ++i) out[i] = double(x[i]);
}

#undef INDEPENDENT
