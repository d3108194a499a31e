#include "network.h"

#include <algorithm>
#include <limits>

#include "canonical.h"
#include "single.h"

namespace bayesbin {

namespace {

constexpr int64_t DRAWN_AT_ONCE = 1 << 22;  // weights between two looks at the watch

}  // namespace

Network::Network(const Tier& tier, const std::vector<Step>& steps, Shape input, int lanes)
    : tier_(tier), steps_(steps), input_(input) {
    int64_t largest = input.size();
    for (const Step& step : steps) {
        largest = std::max(largest, step.out.size());
        const bool weights = step.op == Op::WEIGHTS;
        const int64_t words = weights ? ceil_div(step.geometry.inputs(), 64) : 0;
        columns_.emplace_back(weights ? size_t(words * column_stride(step.geometry.units)) : 0);
        if (weights) scratch_.announce(step.geometry, step.kind, lanes);
    }
    scratch_.allocate();
    from_ = Buffer<float>(size_t(largest * lanes));
    to_ = Buffer<float>(size_t(largest * lanes));
}

bool Network::set_draw(int64_t draw, Watch& watch) {
    draw_ = draw;
    for (size_t i = 0; i < steps_.size(); ++i) {
        const Step& step = steps_[i];
        if (step.op != Op::WEIGHTS) continue;
        const int64_t units = step.geometry.units, inputs = step.geometry.inputs();
        if (step.bits) {
            to_columns(step.bits + draw * step.bits_step, units, inputs, columns_[i].get());
            continue;
        }
        const int64_t piece = std::max<int64_t>(1, DRAWN_AT_ONCE / inputs);
        for (int64_t n = 0; n < units; n += piece) {
            if (watch.stopped()) return false;
            tier_.draw(step.mode, step.thresholds, step.keys[draw], inputs, n,
                       std::min(units, n + piece), {columns_[i].get(), 1, column_stride(units)});
        }
    }
    return true;
}

const float* Network::run(const float* x, int64_t rows, int64_t first, int lanes, Watch& watch) {
    to_lanes(x, rows, first, input_.size(), lanes, from_.get());
    for (size_t i = 0; i < steps_.size(); ++i) {
        if (watch.stopped()) return nullptr;
        const Step& step = steps_[i];
        float* values = from_.get();
        const int64_t count = step.in.size() * lanes, per_channel = count / step.in.channels;
        switch (step.op) {
            case Op::WEIGHTS:
                apply_weights(tier_, step.kind, step.geometry,
                              {columns_[i].get(), column_stride(step.geometry.units)}, values, lanes,
                              to_.get(), scratch_);
                std::swap(from_, to_);
                break;
            case Op::AFFINE: {
                const float *a = step.a + draw_ * step.a_step, *b = step.b + draw_ * step.b_step;
                for (int64_t c = 0; c < step.in.channels; ++c)
                    tier_.affine(values + c * per_channel, per_channel, a[c], b[c]);
                break;
            }
            case Op::RELU: tier_.relu(values, count); break;
            case Op::CLAMP: tier_.clamp(values, count, step.a[0], step.a[1]); break;
            case Op::TANH: tier_.tanh(values, count); break;
            case Op::SIGN: tier_.sign(values, count); break;
            case Op::MAX_POOL:
            case Op::AVG_POOL:
                pool(step, lanes, values, to_.get());
                std::swap(from_, to_);
                break;
            case Op::FLATTEN: break;  // values lie in that order already
        }
    }
    return from_.get();
}

// Padding is left out of a maximum and of a sum; an average divides by the window's area, padding
// included or not. (As in torch without ceil_mode.)
void Network::pool(const Step& step, int lanes, const float* x, float* out) const {
    const Window& w = step.window;
    const Shape &in = step.in, &to = step.out;
    const bool maximum = step.op == Op::MAX_POOL;
    const float start = maximum ? -std::numeric_limits<float>::infinity() : 0.0f;
    for (int64_t c = 0; c < in.channels; ++c)
        for (int64_t oy = 0; oy < to.height; ++oy)
            for (int64_t ox = 0; ox < to.width; ++ox, out += lanes) {
                const int64_t top = oy * w.step_y - w.pad_y, left = ox * w.step_x - w.pad_x;
                const int64_t y0 = std::max<int64_t>(top, 0), x0 = std::max<int64_t>(left, 0);
                const int64_t y1 = std::min(top + w.height, in.height);
                const int64_t x1 = std::min(left + w.width, in.width);
                std::fill_n(out, lanes, start);
                for (int64_t y = y0; y < y1; ++y)
                    for (int64_t xx = x0; xx < x1; ++xx) {
                        const float* value = x + ((c * in.height + y) * in.width + xx) * lanes;
                        if (maximum)
                            tier_.maximum(out, value, lanes);
                        else
                            tier_.add(out, value, lanes);
                    }
                if (maximum) continue;
                const int64_t area =
                    step.count_padding ? w.height * w.width : (y1 - y0) * (x1 - x0);
                for (int r = 0; r < lanes; ++r) out[r] /= float(area);
            }
}

}  // namespace bayesbin
