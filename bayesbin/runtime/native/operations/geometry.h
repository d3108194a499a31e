// Sizes of windows over images, and of the images.
#pragma once

#include <cstdint>

#include "../canonical.h"

namespace bayesbin {

// Along one axis of an image.
struct Axis {
    int64_t size = 1, window = 1, step = 1, low = 0, high = 0, dilation = 1;

    int64_t padded() const { return size + low + high; }
    int64_t span() const { return dilation * (window - 1) + 1; }
    int64_t places() const { return (padded() - span()) / step + 1; }
    bool plain() const { return step == 1 && low == 0 && high == 0; }
    bool fits() const {
        return size >= 1 && window >= 1 && step >= 1 && low >= 0 && high >= 0 && dilation >= 1 &&
               padded() >= span();
    }
};

// Weights (units, channels / groups, window) over images (channels, height, width) with zeros around
// them. A linear layer has images of one pixel, and may be applied to each of several `positions`, whose
// inputs lie one after another.
struct Geometry {
    int64_t channels = 1, units = 1, groups = 1, positions = 1;
    Axis y, x;

    int64_t out_height() const { return y.places(); }
    int64_t out_width() const { return x.places(); }
    int64_t pixels() const { return out_height() * out_width(); }
    int64_t inputs() const { return channels / groups * y.window * x.window; }  // of a unit
    int64_t features_in() const { return positions * channels * y.size * x.size; }
    int64_t features_out() const { return positions * units * pixels(); }
    bool linear() const { return y.padded() * x.padded() == 1 && groups == 1; }
};

}  // namespace bayesbin
