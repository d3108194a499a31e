// Batch normalisation by the statistics of the very batch, for the calibration of an ensemble.
#pragma once

#include "../isa/isa.h"
#include "../parallel.h"

namespace bayesbin {

// Normalise values (draws, outer, channels, inner) where they are, each channel of a draw by its own mean and
// biased variance: (x - mean) weight / sqrt(variance + eps) + bias. Means, and sums of squares about them, go
// to (draws, channels). Weights and biases are (draws, channels), null for none. The numbers do not depend on
// isa and threads.
template <class T>
void normalise_by_batch(const Isa& isa, T* x, int64_t draws, Channels c, const double* weight,
                        const double* bias, double eps, double* mean, double* squares, int threads,
                        Watch& watch);

}  // namespace bayesbin
