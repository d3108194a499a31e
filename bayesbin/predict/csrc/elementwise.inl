// Steps that touch every number once: plain loops, which the compiler turns into vectors.

void affine(float* x, int64_t count, float a, float b) {
    for (int64_t i = 0; i < count; ++i) x[i] = x[i] * a + b;
}

void relu(float* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) x[i] = x[i] < 0.0f ? 0.0f : x[i];
}

void clamp(float* x, int64_t count, float low, float high) {
    for (int64_t i = 0; i < count; ++i) {
        const float v = x[i] < low ? low : x[i];
        x[i] = v > high ? high : v;
    }
}

// 1 - 2 / (exp(2|x|) + 1), and near 0 an odd polynomial (Cephes' tanhf and expf); within 2 units in
// the last place, on every isa the same number.
void tanh(float* x, int64_t count) {
    constexpr float ROUND = 12582912.0f;
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
        x[i] = v != v ? v : finite;
    }
}

// +1 at 0 and at -0, as the package's own sign.
void sign(float* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) x[i] = x[i] >= 0.0f ? 1.0f : -1.0f;
}

void to_int8(const float* x, int64_t count, int8_t* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = x[i] >= 0.0f ? 1 : -1;
}

void add(float* into, const float* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) into[i] += x[i];
}
