// A network as a program: a few steps, each a row of PROGRAM_FIELDS whole numbers, pointers among them.
#pragma once

#include <cstdint>
#include <vector>

#include "weighted.h"

namespace bayesbin {

constexpr int PROGRAM_FIELDS = 16;

// The first number of a row, and what the others are. Shapes are (channels, height, width) throughout;
// `step` is the distance, in elements, from one draw's values to the next one's (0: all draws share).
enum class Op : int64_t {
    // kind, units, channels of a weight, window (height, width, steps y x, padding y x), then the
    // addresses of mode, thresholds and keys (one per draw), or of bits in rows and their step.
    WEIGHTS = 0,
    AFFINE = 1,   // addresses of a and b (channels), their steps: x <- a x + b
    RELU = 2,
    CLAMP = 3,    // address of two floats: x <- min(max(x, low), high)
    TANH = 4,
    SIGN = 5,     // +1 at 0
    MAX_POOL = 6, // 0, 0, 0, window
    AVG_POOL = 7, // whether padding counts, 0, 0, window
    FLATTEN = 8,  // every value becomes a channel
    PUSH = 9,     // a copy of the values goes on a stack
    SWAP = 10,    // the values and those on top of the stack change places
    ADD = 11,     // the values on top of the stack are taken off it and added
};

struct Shape {
    int64_t channels, height, width;
    int64_t size() const { return channels * height * width; }
};

struct Step {
    Op op;
    Shape in, out;
    // WEIGHTS
    Kind kind = Kind::REAL;
    Geometry geometry{};
    const uint64_t* mode = nullptr;
    const uint16_t* thresholds = nullptr;
    const uint64_t* keys = nullptr;
    const uint64_t* bits = nullptr;
    int64_t bits_step = 0;
    // AFFINE; CLAMP has its two numbers in a
    const float *a = nullptr, *b = nullptr;
    int64_t a_step = 0, b_step = 0;
    // pools
    Window window{};
    bool count_padding = true;
};

// The steps with their shapes. Throws std::invalid_argument, in a sentence, where they do not fit or
// leave values on the stack.
std::vector<Step> read_program(const int64_t* rows, int64_t count, Shape input);

}  // namespace bayesbin
