// NEON: vectors of 16 bytes and a popcount of them. Compiled on 64-bit Arm only; not run or measured yet.
#include <arm_neon.h>

#include "canonical.h"
#include "isa.h"

namespace bayesbin {
namespace {

constexpr int NATIVE = 16;

inline int64_t ones(uint64x2_t x, uint64x2_t w) {
    return vaddlvq_u8(vcntq_u8(vreinterpretq_u8_u64(veorq_u64(x, w))));
}

inline void differing(const uint64_t* x0, const uint64_t* x1, const uint64_t* w0, const uint64_t* w1,
                      int64_t count, int64_t bits[4]) {
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) {
        const uint64x2_t a0 = vld1q_u64(x0 + i), a1 = vld1q_u64(x1 + i);
        const uint64x2_t b0 = vld1q_u64(w0 + i), b1 = vld1q_u64(w1 + i);
        bits[0] += ones(a0, b0);
        bits[1] += ones(a0, b1);
        bits[2] += ones(a1, b0);
        bits[3] += ones(a1, b1);
    }
    for (; i < count; ++i) {
        bits[0] += __builtin_popcountll(x0[i] ^ w0[i]);
        bits[1] += __builtin_popcountll(x0[i] ^ w1[i]);
        bits[2] += __builtin_popcountll(x1[i] ^ w0[i]);
        bits[3] += __builtin_popcountll(x1[i] ^ w1[i]);
    }
}

#include "flips_words.inl"
#include "kernels.inl"

bool always() { return true; }

}  // namespace

extern const Isa NEON = make_isa("neon", always);

}  // namespace bayesbin
