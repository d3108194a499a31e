#include "weighted.h"

#include <algorithm>

#include "canonical.h"
#include "convolution.h"

namespace bayesbin {

namespace {

// One output pixel: the lanes are the rows alone, at least as many as fill a vector.
template <class T, class Sum>
void combine(const Geometry& g, const T* x, int lanes, float* out, Scratch& scratch, const Sum& sum) {
    const T** inputs = reinterpret_cast<const T**>(scratch.inputs.get());
    const int64_t count = g.inputs();
    const int width = std::max(lanes, FEWEST_LANES);
    if (width > lanes) {
        T* spread = reinterpret_cast<T*>(scratch.gathered.get());
        std::fill_n(spread, count * width, T(0));
        for (int64_t k = 0; k < count; ++k) std::copy_n(x + k * lanes, lanes, spread + k * width);
        x = spread;
    }
    for (int64_t k = 0; k < count; ++k) inputs[k] = x + k * width;
    if (width == lanes) return sum(inputs, width, out, lanes);
    const float* sums = scratch.sums.get();
    sum(inputs, width, scratch.sums.get(), width);
    for (int64_t n = 0; n < g.units; ++n) std::copy_n(sums + n * width, lanes, out + n * lanes);
}

template <class T, class Sum>
void apply(const Geometry& g, const T* x, int lanes, float* out, Scratch& scratch, const Sum& sum) {
    if (g.linear())
        combine(g, x, lanes, out, scratch, sum);
    else
        convolve(g, x, lanes, out, scratch, sum);
}

}  // namespace

void to_columns(const uint64_t* rows, int64_t units, int64_t inputs, uint64_t* columns) {
    const int64_t words = ceil_div(inputs, 64), stride = column_stride(units);
    for (int64_t n0 = 0; n0 < units; n0 += 8)  // a cache line of a column at a time
        for (int64_t w = 0; w < words; ++w)
            for (int64_t n = n0; n < std::min(units, n0 + 8); ++n)
                columns[w * stride + n] = rows[n * words + w];
}

void Scratch::announce(const Geometry& g, Kind kind, int lanes) {
    const auto at_least = [](size_t& size, int64_t wanted) { size = std::max(size, size_t(wanted)); };
    const int width = g.linear() ? std::max(lanes, FEWEST_LANES) : MAX_LANES;
    at_least(inputs_, g.inputs());
    at_least(sums_, g.units * width);
    at_least(gathered_, g.inputs() * width);
    if (!g.linear()) at_least(plane_, plane_size(g) * lanes);
    if (kind == Kind::SIGN) at_least(signs_, g.features_in() * lanes);
    if (kind == Kind::FAST && g.linear())
        at_least(fast_, int64_t(fast_bytes(g.inputs(), g.units, width)));
}

void Scratch::allocate() {
    tables = Buffer<uint8_t>(TABLE_BYTES);
    fast = Buffer<uint8_t>(fast_);
    sums = Buffer<float>(sums_);
    partial = Buffer<float>(sums_);
    plane = Buffer<float>(plane_);
    gathered = Buffer<float>(gathered_);
    signs = Buffer<int8_t>(signs_);
    inputs = Buffer<const void*>(inputs_);
    places = Buffer<int64_t>(inputs_);
    std::fill_n(gathered.get(), gathered_, 0.0f);  // lanes that no output uses are read too
}

void apply_weights(const Isa& isa, Kind kind, const Geometry& g, Columns bits, const float* x,
                   int lanes, float* out, Scratch& scratch) {
    const int64_t count = g.inputs();
    float* partial = scratch.partial.get();
    void* tables = scratch.tables.get();
    if (kind == Kind::SIGN) {
        isa.to_int8(x, g.features_in() * lanes, scratch.signs.get());
        apply<int8_t>(g, scratch.signs.get(), lanes, out, scratch,
                      [&](const int8_t* const* inputs, int width, float* to, int64_t step) {
                          isa.sum_sign(inputs, count, width, bits.data, bits.stride, g.units,
                                        {to, step, partial}, tables);
                      });
        return;
    }
    const bool fast = kind == Kind::FAST && g.linear();
    apply<float>(g, x, lanes, out, scratch,
                 [&](const float* const* inputs, int width, float* to, int64_t step) {
                     if (fast)
                         isa.sum_fast(inputs, count, width, bits.data, bits.stride, g.units,
                                       {to, step, partial}, scratch.fast.get(), tables);
                     else
                         isa.sum_real(inputs, count, width, bits.data, bits.stride, g.units,
                                       {to, step, partial}, tables);
                 });
}

}  // namespace bayesbin
