#include "heads.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace bayesbin {

namespace {

constexpr double INFINITE = std::numeric_limits<double>::infinity();
constexpr double SMALLEST_LOG = -690.0;  // exp of it is a normal number, with room for its square root

double log_add(double a, double b) {
    const double high = std::max(a, b), low = std::min(a, b);
    return low == -INFINITE ? high : high + std::log1p(std::exp(low - high));
}

void add_probabilities(Sums sums, const float* logits, int lanes, int64_t classes) {
    double highest = -INFINITE;
    for (int64_t c = 0; c < classes; ++c) highest = std::fmax(highest, double(logits[c * lanes]));
    double total = 0.0;
    for (int64_t c = 0; c < classes; ++c) total += std::exp(double(logits[c * lanes]) - highest);
    const double log_total = std::log(total);
    double entropy = 0.0;
    for (int64_t c = 0; c < classes; ++c) {
        const double log_p = (double(logits[c * lanes]) - highest) - log_total;
        if (log_p < SMALLEST_LOG) {  // adds nothing to the squares or the entropy
            sums.tiny[c] = log_add(sums.tiny[c], log_p);
            continue;
        }
        const double p = std::exp(log_p);
        sums.first[c] += p;
        sums.second[c] += p * p;
        entropy -= p * log_p;
    }
    *sums.entropies += entropy;
}

}  // namespace

void clear(Sums sums, int64_t rows, int64_t outputs) {
    std::fill_n(sums.first, rows * outputs, 0.0);
    std::fill_n(sums.second, rows * outputs, 0.0);
    std::fill_n(sums.entropies, rows, 0.0);
    std::fill_n(sums.tiny, rows * outputs, -INFINITE);
}

void add_draw(Head head, Sums sums, const float* values, int lanes, int64_t rows, int64_t outputs,
              int64_t draws) {
    for (int64_t r = 0; r < rows; ++r) {
        const Sums row = sums.from_row(r, outputs);
        if (head == Head::CLASSES) {
            add_probabilities(row, values + r, lanes, outputs);
            continue;
        }
        for (int64_t c = 0; c < outputs; ++c) {  // Welford: no large numbers are subtracted
            const double value = values[c * lanes + r], step = value - row.first[c];
            row.first[c] += step / double(draws + 1);
            row.second[c] += step * (value - row.first[c]);
        }
    }
}

void merge(Head head, Sums into, int64_t draws, Sums sums, int64_t more, int64_t rows,
           int64_t outputs) {
    if (head == Head::CLASSES)
        for (int64_t r = 0; r < rows; ++r) into.entropies[r] += sums.entropies[r];
    for (int64_t i = 0; i < rows * outputs; ++i) {
        if (head == Head::CLASSES) {
            into.first[i] += sums.first[i];
            into.second[i] += sums.second[i];
            if (sums.tiny[i] != -INFINITE) into.tiny[i] = log_add(into.tiny[i], sums.tiny[i]);
            continue;
        }
        const double step = sums.first[i] - into.first[i], share = double(more) / double(draws + more);
        into.first[i] += step * share;
        into.second[i] += sums.second[i] + step * step * double(draws) * share;
    }
}

}  // namespace bayesbin
