// AVX-512: vectors of 64 bytes.
#include <immintrin.h>

#include "../canonical.h"
#include "isa.h"

namespace bayesbin {
namespace {

constexpr int NATIVE = 64;

inline __m512i all(uint64_t c) { return _mm512_set1_epi64(int64_t(c)); }

inline __m512i mix(__m512i x) {
    x = _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64(x, 30)), all(MIX_1));
    x = _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64(x, 27)), all(MIX_2));
    return _mm512_xor_si512(x, _mm512_srli_epi64(x, 31));
}

inline uint64_t flips(uint64_t state, const uint16_t* thresholds) {
    const __m512i lane = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i s0 = _mm512_add_epi64(all(state), _mm512_mullo_epi64(lane, all(GAMMA)));
    const __m512i s1 = _mm512_add_epi64(s0, all(8 * GAMMA));
    const uint32_t low = _mm512_cmplt_epu16_mask(mix(s0), _mm512_loadu_si512(thresholds));
    const uint32_t high = _mm512_cmplt_epu16_mask(mix(s1), _mm512_loadu_si512(thresholds + 32));
    return uint64_t(high) << 32 | low;
}

inline __m512d fused(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }

#include "kernels.inl"

// The sums of one row, of sixteen units at once: a table of sixteen sums is a register, and four bits of each
// unit's weights pick from it. The same sums in the same order as in tables.inl.
void sum_row(const float* x, int64_t count, Bits bits, float* out) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (int64_t k = 0; k < count; k += PANEL) {
        float table[8][16];
        for (int group = 0; group < 8; ++group) {
            float v[4];
            for (int i = 0; i < 4; ++i) v[i] = k + 4 * group + i < count ? x[k + 4 * group + i] : 0.0f;
            const float low[4] = {-v[0] - v[1], v[0] - v[1], v[1] - v[0], v[0] + v[1]};
            const float high[4] = {-v[2] - v[3], v[2] - v[3], v[3] - v[2], v[2] + v[3]};
            for (int e = 0; e < 16; ++e) table[group][e] = low[e % 4] + high[e / 4];
        }
        __m512 tables[8];
        for (int group = 0; group < 8; ++group) tables[group] = _mm512_loadu_ps(table[group]);
        const __m512i half = k % 64 ? odd : even;
        const uint64_t* column = bits.words + k / 64 * bits.stride;
        for (int64_t n = 0; n < bits.units; n += 16) {
            // Of the last units, those that are there.
            const int64_t left = bits.units - n;
            const __mmask16 there = left >= 16 ? 0xFFFF : __mmask16((1u << left) - 1);
            const __m512i first = _mm512_maskz_loadu_epi64(__mmask8(there), column + n);
            const __m512i second = _mm512_maskz_loadu_epi64(__mmask8(there >> 8), column + n + 8);
            const __m512i w = _mm512_permutex2var_epi32(first, half, second);
            const auto entry = [&](int group) {
                return _mm512_permutexvar_ps(_mm512_srli_epi32(w, unsigned(4 * group)), tables[group]);
            };
            __m512 sum = _mm512_add_ps(entry(0), entry(1));
            sum = _mm512_add_ps(sum, _mm512_add_ps(entry(2), entry(3)));
            sum = _mm512_add_ps(sum, _mm512_add_ps(entry(4), entry(5)));
            sum = _mm512_add_ps(sum, _mm512_add_ps(entry(6), entry(7)));
            const __m512 before = k ? _mm512_maskz_loadu_ps(there, out + n) : _mm512_setzero_ps();
            _mm512_mask_storeu_ps(out + n, there, _mm512_add_ps(before, sum));
        }
    }
}

bool runs_here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
}

}  // namespace

extern const Isa AVX512 = make_isa("avx512", runs_here, sum_row);

}  // namespace bayesbin
