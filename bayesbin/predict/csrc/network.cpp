#include "network.h"

#include <algorithm>

#include "canonical.h"
#include "pool.h"
#include "single.h"

namespace bayesbin {

namespace {

constexpr int64_t DRAWN_AT_ONCE = 1 << 22;  // weights between two looks at the watch

}  // namespace

Network::Network(const Isa& isa, const std::vector<Step>& steps, Shape input, int lanes)
    : isa_(isa), steps_(steps), input_(input) {
    int64_t largest = input.size();
    size_t depth = 0, deepest = 0;
    for (const Step& step : steps) {
        largest = std::max(largest, step.out.size());
        const bool weights = step.op == Op::WEIGHTS;
        const int64_t words = weights ? ceil_div(step.geometry.inputs(), 64) : 0;
        columns_.emplace_back(weights ? size_t(words * column_stride(step.geometry.units)) : 0);
        if (weights) scratch_.announce(step.geometry, step.kind, lanes);
        if (step.op == Op::PUSH) deepest = std::max(deepest, ++depth);
        if (step.op == Op::ADD) --depth;
    }
    scratch_.allocate();
    from_ = Buffer<float>(size_t(largest * lanes));
    to_ = Buffer<float>(size_t(largest * lanes));
    for (size_t i = 0; i < deepest; ++i) stack_.emplace_back(size_t(largest * lanes));
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
            isa_.draw(step.mode, step.thresholds, step.keys[draw], inputs, n,
                       std::min(units, n + piece), {columns_[i].get(), 1, column_stride(units)});
        }
    }
    return true;
}

const float* Network::run(const float* x, int64_t rows, int64_t first, int lanes, Watch& watch) {
    to_lanes(x, rows, first, input_.size(), lanes, from_.get());
    size_t depth = 0;
    for (size_t i = 0; i < steps_.size(); ++i) {
        if (watch.stopped()) return nullptr;
        const Step& step = steps_[i];
        float* values = from_.get();
        const int64_t count = step.in.size() * lanes, per_channel = count / step.in.channels;
        switch (step.op) {
            case Op::WEIGHTS:
                apply_weights(isa_, step.kind, step.geometry,
                              {columns_[i].get(), column_stride(step.geometry.units)}, values, lanes,
                              to_.get(), scratch_);
                std::swap(from_, to_);
                break;
            case Op::AFFINE: {
                const float *a = step.a + draw_ * step.a_step, *b = step.b + draw_ * step.b_step;
                for (int64_t c = 0; c < step.in.channels; ++c)
                    isa_.affine(values + c * per_channel, per_channel, a[c], b[c]);
                break;
            }
            case Op::RELU: isa_.relu(values, count); break;
            case Op::CLAMP: isa_.clamp(values, count, step.a[0], step.a[1]); break;
            case Op::TANH: isa_.tanh(values, count); break;
            case Op::SIGN: isa_.sign(values, count); break;
            case Op::MAX_POOL:
            case Op::AVG_POOL:
                pool(step, lanes, values, to_.get());
                std::swap(from_, to_);
                break;
            case Op::FLATTEN: break;  // values lie in that order already
            case Op::PUSH: std::copy_n(values, count, stack_[depth++].get()); break;
            case Op::SWAP: std::swap(from_, stack_[depth - 1]); break;
            case Op::ADD: isa_.add(values, stack_[--depth].get(), count); break;
        }
    }
    return from_.get();
}

}  // namespace bayesbin
