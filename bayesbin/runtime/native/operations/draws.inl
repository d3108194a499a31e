// Drawing the bits of units. An isa defines flips(state, thresholds): of 64 weights, from the 16 words
// mix(state + GAMMA j), those with u < t.

void draw(const uint64_t* mode, const uint16_t* thresholds, uint64_t key, int64_t inputs, int64_t first,
          int64_t last, BitsOut out) {
    const int64_t words = ceil_div(inputs, 64), numbers = ceil_div(inputs, 4), whole = inputs / 64;
    for (int64_t n = first; n < last; ++n) {
        uint64_t* to = out.data + n * out.unit_step;
        const uint16_t* t = thresholds + n * inputs;
        uint64_t state = key + GAMMA * (uint64_t(n) * uint64_t(numbers) + 1);
        for (int64_t w = 0; w < whole; ++w, state += 16 * GAMMA)
            to[w * out.word_step] = mode[n * words + w] ^ flips(state, t + 64 * w);
        if (whole == words) continue;
        uint16_t rest[64] = {};
        __builtin_memcpy(rest, t + 64 * whole, size_t(inputs % 64) * 2);
        const uint64_t word = mode[n * words + whole] ^ flips(state, rest);
        to[whole * out.word_step] = word & tail_mask(inputs);
    }
}
