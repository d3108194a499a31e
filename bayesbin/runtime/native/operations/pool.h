// Maxima and means over windows of images.
#pragma once

#include "../step.h"
#include "geometry.h"

namespace bayesbin {

// Windows are clipped to the image where they reach out of it. There may be more places than the padding
// leaves room for: the last window then begins inside the image.
class PoolStep : public Step {
public:
    // divisor 0: the number of values; those of the padding among them where count_padding says so.
    PoolStep(Value x, bool maximum, int64_t channels, Axis y, Axis x_axis, int64_t out_height,
             int64_t out_width, bool count_padding, int64_t divisor, Type type);
    void run(const Block& block) const override;

private:
    template <class T, int LANES>
    void pool(const T* x, T* out) const;

    bool maximum_;
    int64_t channels_;
    Axis y_, x_;
    int64_t out_height_, out_width_;
    bool count_padding_;
    int64_t divisor_;
};

// Decisions about maxima, of images of decisions: the maximum of a window reaches its threshold where one of
// its values does; where it must not rise above the threshold (d < 0), all have to. What is not a number is
// the maximum.
class PoolSignsStep : public Step {
public:
    PoolSignsStep(Value x, int64_t channels, Axis y, Axis x_axis, int64_t out_height, int64_t out_width,
                  Numbers d);
    void run(const Block& block) const override;

private:
    int64_t channels_;
    Axis y_, x_;
    int64_t out_height_, out_width_;
    Numbers d_;
};

}  // namespace bayesbin
