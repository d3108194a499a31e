// NEON: vectors of 16 bytes. Compiled on 64-bit Arm only; run under emulation, not measured yet.
#include <arm_neon.h>

#include "../canonical.h"
#include "isa.h"

namespace bayesbin {
namespace {

constexpr int NATIVE = 16;

inline float64x2_t fused(float64x2_t a, float64x2_t b, float64x2_t c) { return vfmaq_f64(c, a, b); }

#include "../operations/flips_words.inl"
#include "kernels.inl"

bool always() { return true; }

}  // namespace

extern const Isa NEON = make_isa("neon", always);

}  // namespace bayesbin
