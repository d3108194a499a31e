#include "batch.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace bayesbin {

namespace {

constexpr int64_t CHUNK = 1 << 15;  // numbers of a piece of work; they stay in the cache

}  // namespace

template <class T>
void normalise_by_batch(const Isa& isa, T* x, int64_t draws, Channels c, const double* weight,
                        const double* bias, double eps, double* mean, double* squares, int threads,
                        Watch& watch) {
    const int64_t row = c.channels * c.inner, each = std::max<int64_t>(1, CHUNK / std::max<int64_t>(1, row));
    const int64_t chunks = (c.outer + each - 1) / each, all = draws * c.channels;
    std::vector<double> centre(all), sums(chunks * all), parts(chunks * all);
    for (int64_t d = 0; d < draws; ++d)  // of the first row: near the mean, which loses no digits of the squares
        for (int64_t n = 0; n < c.channels; ++n) {
            const T* at = x + d * c.outer * row + n * c.inner;
            double total = 0.0;
            for (int64_t i = 0; i < c.inner; ++i) total += double(at[i]);
            centre[d * c.channels + n] = total / double(c.inner);
        }
    const auto piece = [&](int64_t unit, int64_t& d, int64_t& first) {
        d = unit / chunks;
        first = unit % chunks * each;
        return Channels{std::min(each, c.outer - first), c.channels, c.inner};
    };
    run_units(draws * chunks, threads, watch, [&](int64_t unit, int) {
        int64_t d, first;
        const Channels own = piece(unit, d, first);
        arithmetic<T>(isa).deviations(x + (d * c.outer + first) * row, &centre[d * c.channels],
                                      &sums[unit * c.channels], &parts[unit * c.channels], own);
    });
    if (watch.stopped()) return;
    std::vector<T> middle(all), slope(all), shift(all);
    const double count = double(c.outer * c.inner);
    for (int64_t d = 0; d < draws; ++d)
        for (int64_t n = 0; n < c.channels; ++n) {
            double total = 0.0, square = 0.0;
            for (int64_t k = 0; k < chunks; ++k) {
                total += sums[(d * chunks + k) * c.channels + n];
                square += parts[(d * chunks + k) * c.channels + n];
            }
            const int64_t at = d * c.channels + n;
            const double apart = total / count;
            mean[at] = centre[at] + apart;
            squares[at] = square - total * apart;
            const double root = 1.0 / std::sqrt(squares[at] / count + eps);
            middle[at] = T(mean[at]);
            slope[at] = T(weight ? root * weight[at] : root);
            shift[at] = T(bias ? bias[at] : 0.0);
        }
    run_units(draws * chunks, threads, watch, [&](int64_t unit, int) {
        int64_t d, first;
        const Channels own = piece(unit, d, first);
        const int64_t n = d * c.channels;
        arithmetic<T>(isa).standardise(x + (d * c.outer + first) * row, &middle[n], &slope[n], &shift[n], own);
    });
}

template void normalise_by_batch<float>(const Isa&, float*, int64_t, Channels, const double*, const double*,
                                        double, double*, double*, int, Watch&);
template void normalise_by_batch<double>(const Isa&, double*, int64_t, Channels, const double*, const double*,
                                         double, double*, double*, int, Watch&);

}  // namespace bayesbin
