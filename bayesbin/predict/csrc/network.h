// One worker's copy of a network: the bits of one draw, and the rows of one block on their way through.
#pragma once

#include <vector>

#include "parallel.h"
#include "program.h"

namespace bayesbin {

class Network {
public:
    // For blocks of up to `lanes` rows; allocates all it will ever need.
    Network(const Isa& isa, const std::vector<Step>& steps, Shape input, int lanes);

    // Make the bits of a draw the current ones. False if the watch stopped it.
    bool set_draw(int64_t draw, Watch& watch);

    // The outputs (size of the last shape, in lanes) for the rows from `first` on of x (rows, size of
    // the first shape), with the current bits; null if the watch stopped it. Valid until the next call.
    const float* run(const float* x, int64_t rows, int64_t first, int lanes, Watch& watch);

private:
    const Isa& isa_;
    const std::vector<Step>& steps_;
    Shape input_;
    int64_t draw_ = 0;
    Scratch scratch_;
    std::vector<Buffer<uint64_t>> columns_;  // of each step; empty where it has no weights
    Buffer<float> from_, to_;
    std::vector<Buffer<float>> stack_;  // as many as the steps ever put there; in use from the first on
};

}  // namespace bayesbin
