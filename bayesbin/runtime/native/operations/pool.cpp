#include "pool.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace bayesbin {

namespace {

// Vectors, because their comparisons do not branch: which value is the largest is hard to predict.
template <class T>
struct VectorOf {
    typedef T type __attribute__((vector_size(16)));
};

// A window along one axis: places begin, begin + dilation, ... below end, and how many there would be
// without the image's end.
struct Span {
    int64_t begin, end, counted;
};

Span span_at(const Axis& axis, int64_t place) {
    const int64_t start = place * axis.step - axis.low;
    const int64_t past = std::min(start + axis.span(), axis.size + axis.high);
    int64_t begin = start;
    if (begin < 0) begin += ceil_div(-begin, axis.dilation) * axis.dilation;
    return {begin, std::min(past, axis.size), past - start};
}

bool sound(const Axis& axis, int64_t places) {
    return axis.size >= 1 && axis.window >= 1 && axis.step >= 1 && axis.low >= 0 && axis.high >= 0 &&
           axis.dilation >= 1 && places >= 1 && (places - 1) * axis.step < axis.size + axis.low;
}

template <class T, int LANES, bool MAXIMUM>
void pool_window(const T* x, int64_t width, const Span& ys, int64_t hop_y, const Span& xs, int64_t hop_x,
                 T* out) {
    typedef typename VectorOf<T>::type Vector;
    constexpr int WIDTH = 16 / int(sizeof(T));
    constexpr int USED = LANES < WIDTH ? LANES : WIDTH, COUNT = LANES / USED;
    constexpr T FIRST = MAXIMUM ? -std::numeric_limits<T>::infinity() : T(0);
    Vector found[COUNT];
    for (Vector& f : found) f = Vector{} + FIRST;
    for (int64_t y = ys.begin; y < ys.end; y += hop_y)
        for (int64_t xx = xs.begin; xx < xs.end; xx += hop_x) {
            const T* values = x + (y * width + xx) * LANES;
            for (int i = 0; i < COUNT; ++i) {
                Vector v{};
                std::memcpy(&v, values + i * USED, USED * sizeof(T));
                if (MAXIMUM)
                    found[i] = (v > found[i]) | (v != v) ? v : found[i];
                else
                    found[i] += v;
            }
        }
    for (int i = 0; i < COUNT; ++i) std::memcpy(out + i * USED, &found[i], USED * sizeof(T));
}

}  // namespace

PoolStep::PoolStep(Value x, bool maximum, int64_t channels, Axis y, Axis x_axis, int64_t out_height,
                   int64_t out_width, bool count_padding, int64_t divisor, Type type)
    : maximum_(maximum), channels_(channels), y_(y), x_(x_axis), out_height_(out_height),
      out_width_(out_width), count_padding_(count_padding), divisor_(divisor) {
    if (!sound(y, out_height) || !sound(x_axis, out_width) || channels < 1 || divisor < 0 ||
        channels * y.size * x_axis.size != x.size)
        refuse("has a window that does not fit its images");
    // The largest of float32 numbers is one of them.
    if (maximum && x.type != Type::F8) type = Type::F4;
    wanted = {type};
    value = {channels * out_height * out_width, type};
}

template <class T, int LANES>
void PoolStep::pool(const T* x, T* out) const {
    for (int64_t c = 0; c < channels_; ++c, x += y_.size * x_.size * LANES)
        for (int64_t oy = 0; oy < out_height_; ++oy) {
            const Span ys = span_at(y_, oy);
            for (int64_t ox = 0; ox < out_width_; ++ox, out += LANES) {
                const Span xs = span_at(x_, ox);
                if (maximum_) {
                    pool_window<T, LANES, true>(x, x_.size, ys, y_.dilation, xs, x_.dilation, out);
                    continue;
                }
                pool_window<T, LANES, false>(x, x_.size, ys, 1, xs, 1, out);
                const int64_t area = divisor_         ? divisor_
                                     : count_padding_ ? ys.counted * xs.counted
                                                      : (ys.end - ys.begin) * (xs.end - xs.begin);
                for (int r = 0; r < LANES; ++r) out[r] /= T(area);
            }
        }
}

void PoolStep::run(const Block& block) const {
    with_type(value.type, [&](auto zero) {
        typedef decltype(zero) T;
        const T* x = block.input<T>();
        T* out = block.output<T>();
        switch (block.lanes) {
            case 1: return pool<T, 1>(x, out);
            case 2: return pool<T, 2>(x, out);
            case 4: return pool<T, 4>(x, out);
            case 8: return pool<T, 8>(x, out);
            case 16: return pool<T, 16>(x, out);
            default: return pool<T, 32>(x, out);
        }
    });
}

PoolSignsStep::PoolSignsStep(Value x, int64_t channels, Axis y, Axis x_axis, int64_t out_height,
                             int64_t out_width, Numbers d)
    : channels_(channels), y_(y), x_(x_axis), out_height_(out_height), out_width_(out_width),
      d_(std::move(d)) {
    if (!sound(y, out_height) || !sound(x_axis, out_width) || channels < 1 || y.dilation != 1 ||
        x_axis.dilation != 1 || channels * y.size * x_axis.size != x.size)
        refuse("has a window that does not fit its images");
    if (d_.size != channels || d_.type != Type::F8) refuse("has directions that do not fit its channels");
    wanted = {Type::SIGN};
    value = {channels * out_height * out_width, Type::SIGN};
}

// A row of windows at once: first down the columns, then along the row.
void PoolSignsStep::run(const Block& block) const {
    const int lanes = block.lanes;
    const int64_t width = x_.size * lanes;
    const auto* d = static_cast<const double*>(block.context.at(d_));
    const int8_t* x = block.input<int8_t>();
    int8_t* out = block.output<int8_t>();
    int8_t* line = block.scratch.take<int8_t>(width);
    for (int64_t c = 0; c < channels_; ++c, x += y_.size * width)
        for (int64_t oy = 0; oy < out_height_; ++oy) {
            const bool maximum = !(d[c] < 0.0);
            const Span ys = span_at(y_, oy);
            std::memcpy(line, x + ys.begin * width, size_t(width));
            for (int64_t y = ys.begin + 1; y < ys.end; ++y)
                block.context.isa.extreme(maximum, x + y * width, line, width);
            for (int64_t ox = 0; ox < out_width_; ++ox, out += lanes) {
                const Span xs = span_at(x_, ox);
                std::memcpy(out, line + xs.begin * lanes, size_t(lanes));
                for (int64_t xx = xs.begin + 1; xx < xs.end; ++xx)
                    for (int r = 0; r < lanes; ++r) {
                        const int8_t v = line[xx * lanes + r];
                        out[r] = (maximum ? v > out[r] : v < out[r]) ? v : out[r];
                    }
                for (int r = 0; r < lanes; ++r) out[r] = out[r] == NOT_A_NUMBER ? -1 : out[r];
            }
        }
}

}  // namespace bayesbin
