// Steps without weights: one number each, two numbers each, and numbers that move.
#pragma once

#include "../step.h"

namespace bayesbin {

class UnaryStep : public Step {
public:
    UnaryStep(Value x, Unary op, double a, double b, Type type);
    void run(const Block& block) const override;

private:
    Unary op_;
    double a_, b_;
};

// Two values of one size, number by number.
class BinaryStep : public Step {
public:
    BinaryStep(Value a, Value b, Binary op, Type type);
    void run(const Block& block) const override;

private:
    Binary op_;
};

// A value, and a number for each of its numbers that all rows share; these come second, or first.
class NumbersStep : public Step {
public:
    NumbersStep(Value x, Numbers numbers, Binary op, bool second, Type type);
    void run(const Block& block) const override;

private:
    Numbers numbers_;
    Binary op_;
    bool second_;
};

enum class PerChannel : int64_t { AFFINE = 0, BIAS = 1, PRELU = 2 };

// Numbers for each channel of values (outer, channels, inner): slopes and shifts, a bias, slopes.
class ChannelStep : public Step {
public:
    ChannelStep(Value x, PerChannel op, Channels channels, Numbers first, Numbers second, Type type);
    void run(const Block& block) const override;

private:
    PerChannel op_;
    Channels channels_;
    Numbers first_, second_;
};

// weight (x - mean) / root + bias for each channel, in float64 and rounded once; root is the square root of the
// variance and what is added to it. Without weight or bias there is none.
class NormStep : public Step {
public:
    NormStep(Value x, Channels channels, Numbers mean, Numbers root, Numbers weight, Numbers bias, Type type);
    void run(const Block& block) const override;

private:
    Channels channels_;
    Numbers mean_, root_, weight_, bias_;
};

// The sums or means of every `count` numbers, in float64 and rounded once. They are added as numpy adds the
// numbers of a contiguous row, in pairs of halves.
class SumStep : public Step {
public:
    SumStep(Value x, int64_t count, bool mean, Type type);
    void run(const Block& block) const override;

private:
    int64_t count_;
    bool mean_;
};

// Signs: of each number, or of what it is above the threshold of its channel.
class SignStep : public Step {
public:
    SignStep(Value x);
    SignStep(Value x, Channels channels, Numbers t, Numbers d);
    void run(const Block& block) const override;

private:
    Channels channels_{};
    Numbers t_, d_;
};

// Number k of the output is number places[k] of its source, in the order of several values one after
// another; below 0 it is `fill`.
class MoveStep : public Step {
public:
    MoveStep(const std::vector<Value>& sources, const int64_t* places, int64_t size, double fill, Type type);
    void run(const Block& block) const override;

private:
    struct Run {
        int64_t source, from, count;  // source < 0: fill
    };
    std::vector<Run> runs_;
    double fill_;
};

}  // namespace bayesbin
