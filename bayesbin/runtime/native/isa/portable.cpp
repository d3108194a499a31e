// Plain C++ for any machine: vectors of 16 bytes, as every 64-bit processor has them.
#include "../canonical.h"
#include "isa.h"

namespace bayesbin {
namespace {

constexpr int NATIVE = 16;

// The compiler's vectors have no fused multiplication and addition; where it is used, both give the same.
typedef double Doubles __attribute__((vector_size(16)));
inline Doubles fused(Doubles a, Doubles b, Doubles c) { return a * b + c; }

#include "../operations/flips_words.inl"
#include "kernels.inl"

bool always() { return true; }

}  // namespace

extern const Isa PORTABLE = make_isa("portable", always);

}  // namespace bayesbin
