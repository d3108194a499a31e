// What is kept of the draws' outputs: sums over draws, in float64.
#pragma once

#include <cstdint>

namespace bayesbin {

enum class Head : int64_t {
    CLASSES = 0,     // outputs are logits
    REGRESSION = 1,  // outputs are means
};

// Sums over some draws for some rows and C outputs; all arrays but `entropies` are (rows, C).
// CLASSES: of the probabilities, their squares and the entropies (rows). A probability too small for
// float64 is kept as the logarithm of a sum in `tiny`.
// REGRESSION: first = the mean, second = the sum of squared deviations from it.
struct Sums {
    double *first, *second, *entropies, *tiny;

    Sums from_row(int64_t row, int64_t outputs) const {
        return {first + row * outputs, second + row * outputs, entropies + row, tiny + row * outputs};
    }
};

void clear(Sums sums, int64_t rows, int64_t outputs);

// Add a draw's outputs (C, in lanes) for `rows` rows; `draws` have been added before.
void add_draw(Head head, Sums sums, const float* values, int lanes, int64_t rows, int64_t outputs,
              int64_t draws);

// Add the sums over `more` draws to those over `draws`.
void merge(Head head, Sums into, int64_t draws, Sums sums, int64_t more, int64_t rows, int64_t outputs);

}  // namespace bayesbin
