#include "weighted.h"

#include <algorithm>

#include "canonical.h"

namespace bayesbin {

namespace {

// Where the inputs of one output pixel are, in the weights' order (channel, y, x).
template <class T>
void point_at(const Geometry& g, const T* x, int lanes, int64_t out_y, int64_t out_x, const T* zeros,
              const T** inputs) {
    const int64_t top = out_y * g.window.step_y - g.window.pad_y;
    const int64_t left = out_x * g.window.step_x - g.window.pad_x;
    for (int64_t c = 0; c < g.channels; ++c)
        for (int64_t y = top; y < top + g.window.height; ++y)
            for (int64_t xx = left; xx < left + g.window.width; ++xx) {
                const bool inside = y >= 0 && y < g.height && xx >= 0 && xx < g.width;
                *inputs++ = inside ? x + ((c * g.height + y) * g.width + xx) * lanes : zeros;
            }
}

template <class T, class Sum>
void each_pixel(const Geometry& g, const T* x, int lanes, const T* zeros, float* out, Scratch& scratch,
                const Sum& sum) {
    const T** inputs = reinterpret_cast<const T**>(scratch.inputs.get());
    const int64_t pixels = g.out_height() * g.out_width();
    float* sums = pixels == 1 ? out : scratch.sums.get();  // one pixel: already in its place
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        point_at(g, x, lanes, pixel / g.out_width(), pixel % g.out_width(), zeros, inputs);
        sum(inputs, sums);
        if (pixels == 1) return;
        for (int64_t n = 0; n < g.units; ++n)
            std::copy_n(sums + n * lanes, lanes, out + (n * pixels + pixel) * lanes);
    }
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
    at_least(inputs_, g.inputs());
    at_least(sums_, g.units * lanes);
    if (kind == Kind::SIGN) {
        at_least(signs_, g.features_in() * lanes);
        at_least(partial_, g.units * lanes);
    }
    if (kind == Kind::FAST && g.linear())
        at_least(fast_, int64_t(fast_bytes(g.inputs(), g.units, lanes)));
}

void Scratch::allocate() {
    tables = Buffer<uint8_t>(TABLE_BYTES);
    fast = Buffer<uint8_t>(fast_);
    sums = Buffer<float>(sums_);
    signs = Buffer<int8_t>(signs_);
    partial = Buffer<int16_t>(partial_);
    inputs = Buffer<const void*>(inputs_);
    zeros = Buffer<float>(MAX_LANES);
    std::fill_n(zeros.get(), MAX_LANES, 0.0f);  // as integers: zeros too
}

void apply_weights(const Tier& tier, Kind kind, const Geometry& g, Columns bits, const float* x,
                   int lanes, float* out, Scratch& scratch) {
    if (kind == Kind::SIGN) {
        tier.to_int8(x, g.features_in() * lanes, scratch.signs.get());
        const int8_t* zeros = reinterpret_cast<const int8_t*>(scratch.zeros.get());
        each_pixel<int8_t>(g, scratch.signs.get(), lanes, zeros, out, scratch,
                           [&](const int8_t* const* inputs, float* sums) {
                               tier.sum_sign(inputs, g.inputs(), lanes, bits.data, bits.stride, g.units,
                                             sums, scratch.partial.get(), scratch.tables.get());
                           });
        return;
    }
    const bool fast = kind == Kind::FAST && g.linear();
    each_pixel<float>(g, x, lanes, scratch.zeros.get(), out, scratch,
                      [&](const float* const* inputs, float* sums) {
                          if (fast)
                              tier.sum_fast(inputs, g.inputs(), lanes, bits.data, bits.stride, g.units,
                                            sums, scratch.fast.get(), scratch.tables.get());
                          else
                              tier.sum_real(inputs, g.inputs(), lanes, bits.data, bits.stride, g.units,
                                            sums, scratch.tables.get());
                      });
}

}  // namespace bayesbin
