// AVX2: vectors of 32 bytes.
#include <immintrin.h>

#include "canonical.h"
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

extern const Isa AVX2 = make_isa("avx2", runs_here);

}  // namespace bayesbin
