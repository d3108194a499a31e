// Normalisation by the statistics of a batch: of each channel the sums that mean and variance are made of.

// Adds of each channel the deviations from `centre`, and their squares, in eight lanes each and a rest; the
// rows one after another. bayesbin/runtime/batch.py adds in the same order.
template <class T>
void deviations(const T* x, const double* __restrict centre, double* __restrict sums,
                double* __restrict squares, Channels c) {
    constexpr int LANES = 8;
    for (int64_t o = 0; o < c.outer; ++o) {
        if (c.inner == 1) {
            for (int64_t n = 0; n < c.channels; ++n) {
                const double d = double(x[n]) - centre[n];
                sums[n] += d;
                squares[n] += d * d;
            }
            x += c.channels;
            continue;
        }
        for (int64_t n = 0; n < c.channels; ++n, x += c.inner) {
            const double middle = centre[n];
            double s[LANES] = {}, q[LANES] = {}, rest = 0.0, rest_squares = 0.0;
            int64_t i = 0;
            for (; i + LANES <= c.inner; i += LANES)
                for (int l = 0; l < LANES; ++l) {
                    const double d = double(x[i + l]) - middle;
                    s[l] += d;
                    q[l] += d * d;
                }
            for (; i < c.inner; ++i) {
                const double d = double(x[i]) - middle;
                rest += d;
                rest_squares += d * d;
            }
            sums[n] += (((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))) + rest;
            squares[n] += (((q[0] + q[1]) + (q[2] + q[3])) + ((q[4] + q[5]) + (q[6] + q[7]))) + rest_squares;
        }
    }
}

// (x - mean) slope + shift for each channel, each operation rounded to T.
template <class T>
void standardise(T* x, const T* mean, const T* slope, const T* shift, Channels c) {
    by_channel(x, x, c, [=](T v, int64_t n) { return (v - mean[n]) * slope[n] + shift[n]; });
}
