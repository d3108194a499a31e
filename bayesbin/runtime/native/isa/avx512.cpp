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

bool runs_here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
}

}  // namespace

extern const Isa AVX512 = make_isa("avx512", runs_here);

}  // namespace bayesbin
