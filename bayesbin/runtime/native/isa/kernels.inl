// All kernels of an isa. Included once by each file of an isa inside an unnamed namespace, after the isa
// has defined NATIVE, flips and fused; so every isa has its own copy with its own instructions,
// and the linker cannot hand one isa's copy to another. For the same reason nothing here is a
// template of the standard library.

#include "lanes.inl"

#include "../operations/tables.inl"

#include "../operations/integers.inl"

#include "../operations/fast.inl"

#include "../operations/decide.inl"

#include "../operations/weigh.inl"

#include "../operations/elementwise.inl"

#include "../operations/batch.inl"

#include "../operations/draws.inl"

template <class T>
constexpr Arithmetic<T> make_arithmetic() {
    return {sum_real<T>, weigh<T>, unary<T>,     binary<T>, with_numbers<T>, affine<T>,     add_bias<T>,
            prelu<T>,    sign<T>,  threshold<T>, widen<T>,  deviations<T>,   standardise<T>};
}

typedef void (*SumRow)(const float* x, int64_t count, Bits bits, float* out);

constexpr Isa make_isa(const char* name, bool (*runs_here)(), SumRow sum_row = nullptr) {
    return {name,       runs_here,       draw,    make_arithmetic<float>(), make_arithmetic<double>(),
            sum_sign,   sum_fast,        decide,  decide_sign,              sum_row,
            decide_row, decide_sign_row, extreme, narrow,                   extend};
}
