// The largest value, or the mean, of each window.
#pragma once

#include "program.h"

namespace bayesbin {

// Of x in lanes. Padding is left out of a maximum and of a sum; an average divides by the window's
// area, padding included or not. NaN is the largest. (As in torch without ceil_mode.)
void pool(const Step& step, int lanes, const float* x, float* out);

}  // namespace bayesbin
