// Signs times signs: popcounts of words, two rows by two units at a time. A isa defines
// differing(x0, x1, w0, w1, count, bits): in how many bits of `count` words each pair differs, added to
// bits[0..3] in the order x0 w0, x0 w1, x1 w0, x1 w1.

void xnor(const uint64_t* x, int64_t rows, const uint64_t* w, int64_t units, int64_t inputs,
          int32_t* out) {
    const int64_t words = ceil_div(inputs, 64), whole = inputs / 64;
    const uint64_t tail = tail_mask(inputs);
    for (int64_t m = 0; m < rows; m += 2)
        for (int64_t n = 0; n < units; n += 2) {
            // At an odd end the last row or unit stands in for the one that is not there.
            const int64_t mm = m + 1 < rows ? m + 1 : m, nn = n + 1 < units ? n + 1 : n;
            const uint64_t *x0 = x + m * words, *x1 = x + mm * words;
            const uint64_t *w0 = w + n * words, *w1 = w + nn * words;
            int64_t bits[4] = {};
            differing(x0, x1, w0, w1, whole, bits);
            if (whole < words) {
                bits[0] += __builtin_popcountll((x0[whole] ^ w0[whole]) & tail);
                bits[1] += __builtin_popcountll((x0[whole] ^ w1[whole]) & tail);
                bits[2] += __builtin_popcountll((x1[whole] ^ w0[whole]) & tail);
                bits[3] += __builtin_popcountll((x1[whole] ^ w1[whole]) & tail);
            }
            out[m * units + n] = int32_t(inputs - 2 * bits[0]);
            out[m * units + nn] = int32_t(inputs - 2 * (nn > n ? bits[1] : bits[0]));
            out[mm * units + n] = int32_t(inputs - 2 * (mm > m ? bits[2] : bits[0]));
            if (mm > m && nn > n) out[mm * units + nn] = int32_t(inputs - 2 * bits[3]);
        }
}
