"""Functions of C that steps use: sums under signs, draws, tanh. T stands for the type of numbers."""

from __future__ import annotations

SIGNED_SUMS = """\
/* Sums of x under the signs of `units` rows of packed words: panels of 32 inputs, in each the sums of
   four as (s0 x0 + s1 x1) + (s2 x2 + s3 x3), which tables hold for all signs; totals from the left. */
static void signed_sums_T(const T *x, int32_t count, const uint64_t *words, int32_t stride,
                          int32_t units, T *out, int32_t step) {
    for (int32_t n = 0; n < units; ++n) out[n * step] = 0;
    for (int32_t first = 0; first < count; first += 32) {
        T tables[8][16];
        for (int32_t group = 0; group < 8; ++group) {
            T v[4];
            for (int32_t i = 0; i < 4; ++i) {
                const int32_t k = first + 4 * group + i;
                v[i] = k < count ? x[k] : 0;
            }
            const T low[4] = {-v[0] - v[1], v[0] - v[1], v[1] - v[0], v[0] + v[1]};
            const T high[4] = {-v[2] - v[3], v[2] - v[3], v[3] - v[2], v[2] + v[3]};
            for (int32_t e = 0; e < 16; ++e) tables[group][e] = low[e & 3] + high[e >> 2];
        }
        for (int32_t n = 0; n < units; ++n) {
            const uint32_t w = (uint32_t)(words[n * stride + first / 64] >> (first % 64));
            T sum = tables[0][w & 15] + tables[1][w >> 4 & 15];
            sum = sum + (tables[2][w >> 8 & 15] + tables[3][w >> 12 & 15]);
            sum = sum + (tables[4][w >> 16 & 15] + tables[5][w >> 20 & 15]);
            sum = sum + (tables[6][w >> 24 & 15] + tables[7][w >> 28]);
            out[n * step] = out[n * step] + sum;
        }
    }
}"""

DRAWN_WORDS = """\
/* The packed signs of a draw: those of the mode, flipped where the random number is below `flip`. The
   random number of unit n and input k is 16 bits of SplitMix64, entered at the place of the weight. */
static void drawn_words(const uint64_t *mode, const uint16_t *flip, uint64_t key, int32_t units,
                        int32_t inputs, uint64_t *words) {
    const int32_t stride = (inputs + 63) / 64, fours = (inputs + 3) / 4;
    for (int32_t n = 0; n < units; ++n) {
        for (int32_t j = 0; j < stride; ++j) words[n * stride + j] = mode[n * stride + j];
        for (int32_t j = 0; j < fours; ++j) {
            const uint64_t place = (uint64_t)n * (uint64_t)fours + (uint64_t)j + 1;
            uint64_t z = key + UINT64_C(0x9e3779b97f4a7c15) * place;
            z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
            z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
            z ^= z >> 31;
            for (int32_t i = 0; i < 4 && 4 * j + i < inputs; ++i) {
                const int32_t k = 4 * j + i;
                const uint16_t random = (uint16_t)(z >> 16 * i & 0xffff);
                if (random < flip[n * inputs + k])
                    words[n * stride + k / 64] ^= UINT64_C(1) << k % 64;
            }
        }
    }
}"""

SIGN_OF = """\
/* Weight k of a row of packed words: -1 or +1. */
static int32_t sign_of(const uint64_t *words, int32_t k) {
    return (words[k / 64] >> k % 64 & 1) ? 1 : -1;
}"""

TANH_F4 = """\
/* tanh in float: 1 - 2 / (exp(2|v|) + 1), and near 0 an odd polynomial (Cephes' tanhf and expf). */
static float tanh_f4(float v) {
    const float size = fabsf(v);
    const float y = size < 10.0f ? 2.0f * size : 20.0f;
    const float whole = (y * 1.44269504f + 12582912.0f) - 12582912.0f;
    const float rest = (y - whole * 0.693359375f) + whole * 2.12194440e-4f;
    const int32_t exponent = ((int32_t)whole + 127) << 23;
    const float z = v * v;
    float e = 1.9875691500e-4f * rest + 1.3981999507e-3f, power, near;
    e = e * rest + 8.3334519073e-3f;
    e = e * rest + 4.1665795894e-2f;
    e = e * rest + 1.6666665459e-1f;
    e = e * rest + 5.0000001201e-1f;
    e = e * rest * rest + rest + 1.0f;
    memcpy(&power, &exponent, sizeof power);
    const float far = 1.0f - 2.0f / (e * power + 1.0f);
    near = -5.70498872745e-3f * z + 2.06390887954e-2f;
    near = near * z + -5.37397155531e-2f;
    near = near * z + 1.33314422036e-1f;
    near = near * z + -3.33332819422e-1f;
    near = near * z * v + v;
    if (isnan(v)) return v;
    return size < 0.625f ? near : v < 0.0f ? -far : far;
}"""

SIGMOID = """\
static double sigmoid(double x) { return 1 / (1 + exp(-x)); }"""

SOFTPLUS = """\
static double softplus(double x, double beta, double threshold) {
    return x * beta > threshold ? x : log1p(exp(x * beta)) / beta;
}"""

POWER = """\
static double power(double a, double b) {
    return b == 2 ? a * a : b == 0.5 ? sqrt(a) : b == -1 ? 1 / a : b == 1 ? a : pow(a, b);
}"""

ADDED_LOGS = """\
/* log(exp(a) + exp(b)) */
static double added_logs(double a, double b) {
    if (a == b) return a + 0.693147180559945309417232121458176568;
    if (isnan(a) || isnan(b)) return a - b;
    return a > b ? a + log1p(exp(b - a)) : b + log1p(exp(a - b));
}"""

LOG_SIGMOID = """\
/* log(1 / (1 + exp(-x))) */
static double log_sigmoid(double x) { return (x < 0 ? x : 0) - log1p(exp(-fabs(x))); }"""

RATE = """\
/* exp(x), and its tangent beyond 40 */
static double rate(double x) { return x > 40 ? exp(40) * (x - 39) : exp(x); }"""

HELPERS: dict[str, str] = {
    "signed_sums_f4": SIGNED_SUMS.replace("signed_sums_T", "signed_sums_f4").replace(
        "T ", "float "
    ),
    "signed_sums_f8": SIGNED_SUMS.replace("signed_sums_T", "signed_sums_f8").replace(
        "T ", "double "
    ),
    "drawn_words": DRAWN_WORDS,
    "sign_of": SIGN_OF,
    "tanh_f4": TANH_F4,
    "sigmoid": SIGMOID,
    "softplus": SOFTPLUS,
    "power": POWER,
    "added_logs": ADDED_LOGS,
    "log_sigmoid": LOG_SIGMOID,
    "rate": RATE,
}
