// Plain C++ for any machine: vectors of 16 bytes, as every 64-bit processor has them.
#include "canonical.h"
#include "isa.h"

namespace bayesbin {
namespace {

constexpr int NATIVE = 16;

#include "differing_words.inl"
#include "flips_words.inl"
#include "kernels.inl"

bool always() { return true; }

}  // namespace

extern const Isa PORTABLE = make_isa("portable", always);

}  // namespace bayesbin
