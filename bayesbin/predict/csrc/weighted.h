// Layers with binary weights, over rows in lanes: a convolution, and a linear layer as a convolution of
// an image of one pixel.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "isa.h"

namespace bayesbin {

enum class Kind : int64_t {
    REAL = 0,  // exact sums of float32
    FAST = 1,  // linear layers in 16-bit numbers; convolutions as REAL
    SIGN = 2,  // inputs are -1 and +1 (by their sign): exact sums of integers
};

struct Window {
    int64_t height = 1, width = 1, step_y = 1, step_x = 1, pad_y = 0, pad_x = 0;
};

// Weights (units, channels, window) over images (channels, height, width), zero padding.
struct Geometry {
    int64_t channels, height, width, units;
    Window window;

    int64_t out_height() const {
        return (height + 2 * window.pad_y - window.height) / window.step_y + 1;
    }
    int64_t out_width() const { return (width + 2 * window.pad_x - window.width) / window.step_x + 1; }
    int64_t inputs() const { return channels * window.height * window.width; }
    int64_t features_in() const { return channels * height * width; }
    int64_t features_out() const { return units * out_height() * out_width(); }
    bool linear() const {
        return height * width == 1 && window.height * window.width == 1 && window.pad_y == 0 &&
               window.pad_x == 0;
    }
};

// Bits in columns, as the isas read them: word w of unit n at data[n + w * stride].
struct Columns {
    const uint64_t* data;
    int64_t stride;
};

// A little more than the units: columns a power of two apart would share their cache sets.
inline int64_t column_stride(int64_t units) { return (units + 7) / 8 * 8 + 8; }

// Turn rows of ceil(inputs/64) words into columns.
void to_columns(const uint64_t* rows, int64_t units, int64_t inputs, uint64_t* columns);

// What apply_weights works with: enough for every geometry that was announced.
class Scratch {
public:
    void announce(const Geometry& geometry, Kind kind, int lanes);
    void allocate();

    Buffer<uint8_t> tables, fast;
    Buffer<float> sums, partial, plane, gathered;
    Buffer<int8_t> signs;
    Buffer<const void*> inputs;
    Buffer<int64_t> places;

private:
    size_t fast_ = 0, sums_ = 0, plane_ = 0, gathered_ = 0, signs_ = 0, inputs_ = 0;
};

// out = the layer's outputs (units, out_height, out_width) of x (channels, height, width), in lanes.
void apply_weights(const Isa& isa, Kind kind, const Geometry& geometry, Columns bits, const float* x,
                   int lanes, float* out, Scratch& scratch);

}  // namespace bayesbin
