// One layer by itself, over a batch in rows: what the tests compare with the formulas, and what is
// measured against other libraries.
#pragma once

#include "parallel.h"
#include "weighted.h"

namespace bayesbin {

// Bits of one draw, in rows of ceil(inputs/64) words with their pad bits 0.
void draw_rows(const Isa& isa, const uint64_t* mode, const uint16_t* thresholds, uint64_t key,
               int64_t units, int64_t inputs, uint64_t* out, int threads, Watch& watch);

// out (rows, features_out) of x (rows, features_in).
void weighted_rows(const Isa& isa, Kind kind, const Geometry& geometry, const float* x, int64_t rows,
                   const uint64_t* bits, float* out, int threads, Watch& watch);

// The same for signs given as bits: rows of ceil(features_in/64) words.
void weighted_bits(const Isa& isa, const Geometry& geometry, const uint64_t* x, int64_t rows,
                   const uint64_t* bits, int32_t* out, int threads, Watch& watch);

// A linear layer of signs by popcounts.
void xnor_rows(const Isa& isa, const uint64_t* x, int64_t rows, const uint64_t* bits, int64_t units,
               int64_t inputs, int32_t* out, int threads, Watch& watch);

// x (rows, features) from row `first` on into lanes; lanes past the last row are 0.
void to_lanes(const float* x, int64_t rows, int64_t first, int64_t features, int lanes, float* out);

}  // namespace bayesbin
