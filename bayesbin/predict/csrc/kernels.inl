// All kernels of a isa. Included once by each isa_*.cpp inside an unnamed namespace, after the isa
// has defined NATIVE, flips and differing; so every isa has its own copy with its own instructions,
// and the linker cannot hand one isa's copy to another. For the same reason nothing here is a
// template of the standard library.

#include "lanes.inl"

#include "tables.inl"

#include "integers.inl"

#include "fast.inl"

#include "elementwise.inl"

#include "draws.inl"

#include "xnor.inl"

constexpr Isa make_isa(const char* name, bool (*runs_here)()) {
    return {name,   runs_here, draw, sum_real, sum_sign, sum_fast, xnor, affine,
            relu,   clamp,     tanh, sign,     to_int8,  add};
}
