// The canonical random numbers: which bit a weight has in a draw, whatever computes it.
//
// A site has N units and K inputs. Python derives one 64-bit key per (seed, draw, site). Word j of unit n
// is mix(key + GAMMA (n ceil(K/4) + j + 1)); half-word k % 4 of word k / 4, the lowest first, is the
// 16-bit number u of weight (n, k). The weight differs from its mode where u < t, with
// t = round(65536 P(differs)), between 0 (never) and 32768 (a fair coin).
#pragma once

#include <cstdint>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "half-words are read in little-endian order");

namespace bayesbin {

constexpr uint64_t GAMMA = 0x9E3779B97F4A7C15u;
constexpr uint64_t MIX_1 = 0xBF58476D1CE4E5B9u;
constexpr uint64_t MIX_2 = 0x94D049BB133111EBu;

// A macro of shifts and multiplications would do as well; `static` gives every isa its own copy,
// compiled with its own instructions.
static inline uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * MIX_1;
    x = (x ^ (x >> 27)) * MIX_2;
    return x ^ (x >> 31);
}

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The valid bits of the last of ceil(K/64) words.
static inline uint64_t tail_mask(int64_t inputs) {
    return inputs % 64 ? (uint64_t(1) << (inputs % 64)) - 1 : ~uint64_t(0);
}

}  // namespace bayesbin
