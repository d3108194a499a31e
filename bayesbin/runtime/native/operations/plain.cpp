#include "plain.h"

#include <algorithm>

namespace bayesbin {

namespace {

void check(const Numbers& numbers, int64_t size, Type type) {
    if (numbers.size != size || numbers.type != type)
        refuse("has " + std::to_string(numbers.size) + " numbers of " + name_of(numbers.type) + " where " +
               std::to_string(size) + " of " + name_of(type) + " are needed");
}

void check(const Channels& c, int64_t size) {
    if (c.outer < 1 || c.channels < 1 || c.inner < 1 || c.size() != size)
        refuse("has channels that do not fit its " + std::to_string(size) + " numbers");
}

template <class T>
const T* numbers_of(const Block& block, const Numbers& numbers) {
    return static_cast<const T*>(block.context.at(numbers));
}

Channels in_lanes(Channels c, int lanes) {
    c.inner *= lanes;
    return c;
}

}  // namespace

UnaryStep::UnaryStep(Value x, Unary op, double a, double b, Type type) : op_(op), a_(a), b_(b) {
    if (op == Unary::TANH && type != Type::F4) refuse("is a tanh of float64, which is not computed here");
    wanted = {type};
    value = {x.size, type};
    in_place = true;
}

void UnaryStep::run(const Block& block) const {
    with_type(value.type, [&](auto zero) {
        typedef decltype(zero) T;
        arithmetic<T>(block.context.isa)
            .unary(op_, block.input<T>(), block.output<T>(), value.size * block.lanes, T(a_), T(b_));
    });
}

BinaryStep::BinaryStep(Value a, Value b, Binary op, Type type) : op_(op) {
    if (a.size != b.size)
        refuse("takes values of " + std::to_string(a.size) + " and " + std::to_string(b.size) + " numbers");
    wanted = {type, type};
    value = {a.size, type};
    in_place = true;
}

void BinaryStep::run(const Block& block) const {
    with_type(value.type, [&](auto zero) {
        typedef decltype(zero) T;
        arithmetic<T>(block.context.isa)
            .binary(op_, block.input<T>(0), block.input<T>(1), block.output<T>(), value.size * block.lanes);
    });
}

NumbersStep::NumbersStep(Value x, Numbers numbers, Binary op, bool second, Type type)
    : numbers_(std::move(numbers)), op_(op), second_(second) {
    check(numbers_, x.size, type);
    wanted = {type};
    value = {x.size, type};
    in_place = true;
}

void NumbersStep::run(const Block& block) const {
    with_type(value.type, [&](auto zero) {
        typedef decltype(zero) T;
        arithmetic<T>(block.context.isa)
            .with_numbers(op_, block.input<T>(), numbers_of<T>(block, numbers_), second_,
                          block.output<T>(), value.size, block.lanes);
    });
}

ChannelStep::ChannelStep(Value x, PerChannel op, Channels channels, Numbers first, Numbers second, Type type)
    : op_(op), channels_(channels), first_(std::move(first)), second_(std::move(second)) {
    check(channels_, x.size);
    check(first_, channels_.channels, type);
    if (op_ == PerChannel::AFFINE) check(second_, channels_.channels, type);
    wanted = {type};
    value = {x.size, type};
    in_place = true;
}

void ChannelStep::run(const Block& block) const {
    with_type(value.type, [&](auto zero) {
        typedef decltype(zero) T;
        const Arithmetic<T>& of = arithmetic<T>(block.context.isa);
        const Channels c = in_lanes(channels_, block.lanes);
        const T *x = block.input<T>(), *first = numbers_of<T>(block, first_);
        T* out = block.output<T>();
        switch (op_) {
            case PerChannel::AFFINE:
                return of.affine(x, first, numbers_of<T>(block, second_), out, c);
            case PerChannel::BIAS: return of.add_bias(x, first, out, c);
            case PerChannel::PRELU: return of.prelu(x, first, out, c);
        }
    });
}

NormStep::NormStep(Value x, Channels channels, Numbers mean, Numbers root, Numbers weight, Numbers bias,
                   Type type)
    : channels_(channels), mean_(std::move(mean)), root_(std::move(root)), weight_(std::move(weight)),
      bias_(std::move(bias)) {
    check(channels_, x.size);
    for (const Numbers* numbers : {&mean_, &root_, &weight_, &bias_})
        if (numbers->size || numbers == &mean_ || numbers == &root_)
            check(*numbers, channels_.channels, Type::F8);
    wanted = {Type::F8};
    value = {x.size, type};
}

void NormStep::run(const Block& block) const {
    const double *mean = numbers_of<double>(block, mean_), *root = numbers_of<double>(block, root_);
    const double* weight = weight_.size ? numbers_of<double>(block, weight_) : nullptr;
    const double* bias = bias_.size ? numbers_of<double>(block, bias_) : nullptr;
    const Channels c = in_lanes(channels_, block.lanes);
    with_type(value.type, [&](auto zero) {
        typedef decltype(zero) T;
        const double* x = block.input<double>();
        T* out = block.output<T>();
        for (int64_t o = 0; o < c.outer; ++o)
            for (int64_t n = 0; n < c.channels; ++n, x += c.inner, out += c.inner) {
                const double m = mean[n], r = root[n];
                for (int64_t i = 0; i < c.inner; ++i) {
                    double v = (x[i] - m) / r;
                    if (weight) v *= weight[n];
                    if (bias) v += bias[n];
                    out[i] = T(v);
                }
            }
    });
}

namespace {

// The sum of `count` numbers `step` apart: up to 128 by eight sums side by side, more by halves.
double pairwise(const double* x, int64_t count, int64_t step) {
    double total = 0.0;
    if (count < 8) {
        for (int64_t i = 0; i < count; ++i) total += x[i * step];
        return total;
    }
    if (count > 128) {
        const int64_t half = count / 2 - count / 2 % 8;
        return pairwise(x, half, step) + pairwise(x + half * step, count - half, step);
    }
    double sums[8];
    for (int j = 0; j < 8; ++j) sums[j] = x[j * step];
    int64_t i = 8;
    for (; i < count - count % 8; i += 8)
        for (int j = 0; j < 8; ++j) sums[j] += x[(i + j) * step];
    total = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    for (; i < count; ++i) total += x[i * step];
    return total;
}

}  // namespace

SumStep::SumStep(Value x, int64_t count, bool mean, Type type) : count_(count), mean_(mean) {
    if (count < 1 || x.size % count) refuse("adds numbers in groups that do not fit");
    wanted = {Type::F8};
    value = {x.size / count, type};
}

void SumStep::run(const Block& block) const {
    const int lanes = block.lanes;
    with_type(value.type, [&](auto zero) {
        typedef decltype(zero) T;
        const double* x = block.input<double>();
        T* out = block.output<T>();
        for (int64_t group = 0; group < value.size; ++group, x += count_ * lanes, out += lanes)
            for (int r = 0; r < lanes; ++r) {
                const double total = pairwise(x + r, count_, lanes);
                out[r] = T(mean_ ? total / double(count_) : total);
            }
    });
}

SignStep::SignStep(Value x) {
    wanted = {x.type};
    value = {x.size, Type::SIGN};
}

SignStep::SignStep(Value x, Channels channels, Numbers t, Numbers d)
    : channels_(channels), t_(std::move(t)), d_(std::move(d)) {
    check(channels_, x.size);
    check(t_, channels_.channels, Type::F8);
    check(d_, channels_.channels, Type::F8);
    wanted = {x.type == Type::SIGN ? Type::F4 : x.type};
    value = {x.size, Type::SIGN};
}

void SignStep::run(const Block& block) const {
    const int64_t count = value.size * block.lanes;
    if (wanted[0] == Type::SIGN) {
        std::copy_n(block.input<int8_t>(), count, block.output<int8_t>());
        return;
    }
    with_type(wanted[0], [&](auto zero) {
        typedef decltype(zero) T;
        const Arithmetic<T>& of = arithmetic<T>(block.context.isa);
        if (!channels_.channels) return of.sign(block.input<T>(), block.output<int8_t>(), count);
        of.threshold(block.input<T>(), {numbers_of<double>(block, t_), numbers_of<double>(block, d_)},
                     block.output<int8_t>(), in_lanes(channels_, block.lanes));
    });
}

MoveStep::MoveStep(const std::vector<Value>& sources, const int64_t* places, int64_t size, double fill,
                   Type type)
    : fill_(fill) {
    if (sources.empty()) refuse("moves numbers of no value");
    std::vector<int64_t> begins = {0};
    for (const Value& source : sources) begins.push_back(begins.back() + source.size);
    if (type == Type::SIGN && std::any_of(places, places + size, [](int64_t at) { return at < 0; }))
        refuse("fills in numbers among signs");
    int64_t source = 0, last = -1;
    for (int64_t k = 0; k < size; ++k) {
        const int64_t at = places[k];
        if (at >= begins.back()) refuse("takes a number that is not there");
        if (at < 0) {
            if (!runs_.empty() && runs_.back().source < 0)
                ++runs_.back().count;
            else
                runs_.push_back({-1, 0, 1});
            last = -1;
            continue;
        }
        if (last >= 0 && at == last + 1 && at < begins[size_t(source) + 1]) {
            ++runs_.back().count;
        } else {
            source = std::upper_bound(begins.begin(), begins.end(), at) - begins.begin() - 1;
            runs_.push_back({source, at - begins[size_t(source)], 1});
        }
        last = at;
    }
    wanted.assign(sources.size(), type);
    value = {size, type};
}

void MoveStep::run(const Block& block) const {
    const auto move = [&](auto zero) {
        typedef decltype(zero) T;
        T* to = block.output<T>();
        for (const Run& run : runs_) {
            const int64_t count = run.count * block.lanes;
            if (run.source < 0)
                std::fill_n(to, count, T(fill_));
            else
                std::copy_n(block.input<T>(size_t(run.source)) + run.from * block.lanes, count, to);
            to += count;
        }
    };
    if (value.type == Type::SIGN)
        move(int8_t());
    else
        with_type(value.type, move);
}

}  // namespace bayesbin
