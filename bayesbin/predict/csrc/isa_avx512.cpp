// AVX-512: vectors of 64 bytes. Compiled wherever the compiler can; it has not been run or measured yet:
// the tables and everything elementwise are the source that the other isas run, and what is particular
// to this one are the two functions below.
#include <immintrin.h>

#include "canonical.h"
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

inline __m512i ones(const uint64_t* x, const uint64_t* w, __mmask8 valid) {
    return _mm512_popcnt_epi64(
        _mm512_xor_si512(_mm512_maskz_loadu_epi64(valid, x), _mm512_maskz_loadu_epi64(valid, w)));
}

inline void differing(const uint64_t* x0, const uint64_t* x1, const uint64_t* w0, const uint64_t* w1,
                      int64_t count, int64_t bits[4]) {
    __m512i c00 = _mm512_setzero_si512(), c01 = c00, c10 = c00, c11 = c00;
    for (int64_t i = 0; i < count; i += 8) {
        const __mmask8 valid = count - i >= 8 ? 0xFF : __mmask8((1u << (count - i)) - 1);
        c00 = _mm512_add_epi64(c00, ones(x0 + i, w0 + i, valid));
        c01 = _mm512_add_epi64(c01, ones(x0 + i, w1 + i, valid));
        c10 = _mm512_add_epi64(c10, ones(x1 + i, w0 + i, valid));
        c11 = _mm512_add_epi64(c11, ones(x1 + i, w1 + i, valid));
    }
    bits[0] += _mm512_reduce_add_epi64(c00);
    bits[1] += _mm512_reduce_add_epi64(c01);
    bits[2] += _mm512_reduce_add_epi64(c10);
    bits[3] += _mm512_reduce_add_epi64(c11);
}

#include "kernels.inl"

bool runs_here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vpopcntdq") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
}

}  // namespace

extern const Isa AVX512 = make_isa("avx512", runs_here);

}  // namespace bayesbin
