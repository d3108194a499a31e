// AVX2: vectors of 32 bytes.
#include <immintrin.h>

#include "../canonical.h"
#include "isa.h"

namespace bayesbin {
namespace {

constexpr int NATIVE = 32;

inline __m256i both(uint64_t c) { return _mm256_set1_epi64x(int64_t(c)); }

// Four vectors at a time, a step of all before the next step of any: one alone would wait for itself.
struct Four {
    __m256i v[4];
};

inline void xor_shifted(Four& x, int shift) {
    for (__m256i& v : x.v) v = _mm256_xor_si256(v, _mm256_srli_epi64(v, shift));
}

// x * c modulo 2^64 in each lane, of 32-bit products: the low halves' product, and to its high half the
// low halves of the two products across.
inline void multiply(Four& x, uint64_t c) {
    Four across, low;
    const __m256i high_half = both(~uint64_t(0) << 32);
    for (int i = 0; i < 4; ++i) across.v[i] = _mm256_mullo_epi32(x.v[i], both(c << 32 | c >> 32));
    for (int i = 0; i < 4; ++i) x.v[i] = _mm256_mul_epu32(x.v[i], both(c));
    for (int i = 0; i < 4; ++i) low.v[i] = _mm256_slli_epi64(across.v[i], 32);
    for (int i = 0; i < 4; ++i) across.v[i] = _mm256_and_si256(across.v[i], high_half);
    for (int i = 0; i < 4; ++i) x.v[i] = _mm256_add_epi64(x.v[i], low.v[i]);
    for (int i = 0; i < 4; ++i) x.v[i] = _mm256_add_epi64(x.v[i], across.v[i]);
}

inline void mix(Four& x) {
    xor_shifted(x, 30);
    multiply(x, MIX_1);
    xor_shifted(x, 27);
    multiply(x, MIX_2);
    xor_shifted(x, 31);
}

inline uint64_t flips(uint64_t state, const uint16_t* thresholds) {
    Four x, kept;
    x.v[0] = _mm256_add_epi64(
        both(state), _mm256_setr_epi64x(0, int64_t(GAMMA), int64_t(2 * GAMMA), int64_t(3 * GAMMA)));
    for (int i = 1; i < 4; ++i) x.v[i] = _mm256_add_epi64(x.v[i - 1], both(4 * GAMMA));
    mix(x);
    for (int i = 0; i < 4; ++i) {  // all ones in the half-words at or above their thresholds
        const __m256i t = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(thresholds) + i);
        kept.v[i] = _mm256_cmpeq_epi16(_mm256_subs_epu16(t, x.v[i]), _mm256_setzero_si256());
    }
    const uint64_t low = uint32_t(_mm256_movemask_epi8(_mm256_packs_epi16(kept.v[0], kept.v[1])));
    const uint64_t high = uint32_t(_mm256_movemask_epi8(_mm256_packs_epi16(kept.v[2], kept.v[3])));
    // Packing takes the two halves of its operands in turn: the two bytes in the middle change places.
    const uint64_t bits = ~(high << 32 | low);
    return (bits & 0xFF0000FFFF0000FFu) | (bits >> 8 & 0x0000FF000000FF00u) |
           (bits << 8 & 0x00FF000000FF0000u);
}

inline __m256d fused(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }

#include "kernels.inl"

bool runs_here() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("fma");
}

}  // namespace

extern const Isa AVX2 = make_isa("avx2", runs_here);

}  // namespace bayesbin
