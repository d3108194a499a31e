// AVX2: vectors of 32 bytes.
#include <immintrin.h>

#include "canonical.h"
#include "tier.h"

namespace bayesbin {
namespace {

constexpr int NATIVE = 32;

// a * c modulo 2^64 in each lane, of 32-bit products; `swapped` is c with its halves exchanged.
inline __m256i multiply(__m256i a, __m256i c, __m256i swapped) {
    const __m256i cross = _mm256_mullo_epi32(a, swapped);
    const __m256i high = _mm256_slli_epi64(_mm256_add_epi64(cross, _mm256_srli_epi64(cross, 32)), 32);
    return _mm256_add_epi64(_mm256_mul_epu32(a, c), high);
}

inline __m256i both(uint64_t c) { return _mm256_set1_epi64x(int64_t(c)); }

inline __m256i mix(__m256i x) {
    x = _mm256_xor_si256(x, _mm256_srli_epi64(x, 30));
    x = multiply(x, both(MIX_1), both(MIX_1 << 32 | MIX_1 >> 32));
    x = _mm256_xor_si256(x, _mm256_srli_epi64(x, 27));
    x = multiply(x, both(MIX_2), both(MIX_2 << 32 | MIX_2 >> 32));
    return _mm256_xor_si256(x, _mm256_srli_epi64(x, 31));
}

// All ones in the half-words of four words that are at or above their thresholds.
inline __m256i kept(__m256i state, const uint16_t* thresholds) {
    const __m256i t = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(thresholds));
    return _mm256_cmpeq_epi16(_mm256_subs_epu16(t, mix(state)), _mm256_setzero_si256());
}

inline uint64_t flips(uint64_t state, const uint16_t* thresholds) {
    const __m256i step = both(4 * GAMMA);
    const __m256i s0 = _mm256_add_epi64(
        both(state), _mm256_setr_epi64x(0, int64_t(GAMMA), int64_t(2 * GAMMA), int64_t(3 * GAMMA)));
    const __m256i s1 = _mm256_add_epi64(s0, step), s2 = _mm256_add_epi64(s1, step);
    const __m256i s3 = _mm256_add_epi64(s2, step);
    // Packing to bytes takes the two halves of its operands in turn; the permutation undoes that.
    const __m256i low = _mm256_permute4x64_epi64(
        _mm256_packs_epi16(kept(s0, thresholds), kept(s1, thresholds + 16)), 0xD8);
    const __m256i high = _mm256_permute4x64_epi64(
        _mm256_packs_epi16(kept(s2, thresholds + 32), kept(s3, thresholds + 48)), 0xD8);
    return ~(uint64_t(uint32_t(_mm256_movemask_epi8(high))) << 32 |
             uint32_t(_mm256_movemask_epi8(low)));
}

inline __m256i load(const uint64_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// The number of ones in each byte: two nibbles looked up.
inline __m256i ones(__m256i v) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                           0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(15);
    return _mm256_add_epi8(
        _mm256_shuffle_epi8(table, _mm256_and_si256(v, nibble)),
        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble)));
}

inline int64_t total(__m256i counts) {
    const __m256i s = _mm256_sad_epu8(counts, _mm256_setzero_si256());
    return _mm256_extract_epi64(s, 0) + _mm256_extract_epi64(s, 1) + _mm256_extract_epi64(s, 2) +
           _mm256_extract_epi64(s, 3);
}

inline void differing(const uint64_t* x0, const uint64_t* x1, const uint64_t* w0, const uint64_t* w1,
                      int64_t count, int64_t bits[4]) {
    int64_t i = 0;
    while (i + 4 <= count) {
        __m256i c00 = _mm256_setzero_si256(), c01 = c00, c10 = c00, c11 = c00;
        // A vector adds at most 8 to a byte, which holds 255: 31 vectors, then the bytes are summed.
        const int64_t end = i + 4 * 31 < count ? i + 4 * 31 : count;
        for (; i + 4 <= end; i += 4) {
            const __m256i a0 = load(x0 + i), a1 = load(x1 + i), b0 = load(w0 + i), b1 = load(w1 + i);
            c00 = _mm256_add_epi8(c00, ones(_mm256_xor_si256(a0, b0)));
            c01 = _mm256_add_epi8(c01, ones(_mm256_xor_si256(a0, b1)));
            c10 = _mm256_add_epi8(c10, ones(_mm256_xor_si256(a1, b0)));
            c11 = _mm256_add_epi8(c11, ones(_mm256_xor_si256(a1, b1)));
        }
        bits[0] += total(c00);
        bits[1] += total(c01);
        bits[2] += total(c10);
        bits[3] += total(c11);
    }
    for (; i < count; ++i) {
        bits[0] += __builtin_popcountll(x0[i] ^ w0[i]);
        bits[1] += __builtin_popcountll(x0[i] ^ w1[i]);
        bits[2] += __builtin_popcountll(x1[i] ^ w0[i]);
        bits[3] += __builtin_popcountll(x1[i] ^ w1[i]);
    }
}

#include "kernels.inl"

bool runs_here() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
}

}  // namespace

extern const Tier AVX2 = make_tier("avx2", runs_here);

}  // namespace bayesbin
