// Prediction averaged over draws: bits are drawn, used and forgotten.
#pragma once

#include "heads.h"
#include "parallel.h"
#include "program.h"

namespace bayesbin {

// Run `draws` draws of the network over x (rows, size of the input) and add up what the head keeps.
// `each`, if not null, gets every draw's outputs (draws, rows, outputs). The result is the same, bit
// for bit, for every number of threads. After a stop by the watch it is unfinished.
void fused_predict(const Isa& isa, const std::vector<Step>& steps, Shape input, const float* x,
                   int64_t rows, int64_t draws, Head head, Sums sums, float* each, int threads,
                   Watch& watch);

}  // namespace bayesbin
