#include "pool.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace bayesbin {

namespace {

// Vectors, because their comparisons do not branch: which value is the largest is hard to predict.
typedef float Vector __attribute__((vector_size(16)));

// Of one window's values [y0, y1) x [x0, x1) in an image of that width.
template <int LANES, bool MAXIMUM>
void pool_window(const float* x, int64_t width, int64_t y0, int64_t y1, int64_t x0, int64_t x1,
                 float* out) {
    constexpr int USED = LANES < 4 ? LANES : 4, COUNT = LANES / USED;
    constexpr float FIRST = MAXIMUM ? -std::numeric_limits<float>::infinity() : 0.0f;
    Vector found[COUNT];
    for (Vector& f : found) f = Vector{FIRST, FIRST, FIRST, FIRST};
    for (int64_t y = y0; y < y1; ++y)
        for (int64_t xx = x0; xx < x1; ++xx) {
            const float* values = x + (y * width + xx) * LANES;
            for (int i = 0; i < COUNT; ++i) {
                Vector v{};
                std::memcpy(&v, values + i * USED, USED * sizeof(float));
                if (MAXIMUM)
                    found[i] = (v > found[i]) | (v != v) ? v : found[i];
                else
                    found[i] += v;
            }
        }
    for (int i = 0; i < COUNT; ++i) std::memcpy(out + i * USED, &found[i], USED * sizeof(float));
}

template <int LANES>
void pool_lanes(const Step& step, const float* x, float* out) {
    const Window& w = step.window;
    const Shape &in = step.in, &to = step.out;
    for (int64_t c = 0; c < in.channels; ++c, x += in.height * in.width * LANES)
        for (int64_t oy = 0; oy < to.height; ++oy)
            for (int64_t ox = 0; ox < to.width; ++ox, out += LANES) {
                const int64_t top = oy * w.step_y - w.pad_y, left = ox * w.step_x - w.pad_x;
                const int64_t y0 = std::max<int64_t>(top, 0), x0 = std::max<int64_t>(left, 0);
                const int64_t y1 = std::min(top + w.height, in.height);
                const int64_t x1 = std::min(left + w.width, in.width);
                if (step.op == Op::MAX_POOL) {
                    pool_window<LANES, true>(x, in.width, y0, y1, x0, x1, out);
                    continue;
                }
                pool_window<LANES, false>(x, in.width, y0, y1, x0, x1, out);
                const int64_t area =
                    step.count_padding ? w.height * w.width : (y1 - y0) * (x1 - x0);
                for (int r = 0; r < LANES; ++r) out[r] /= float(area);
            }
}

}  // namespace

void pool(const Step& step, int lanes, const float* x, float* out) {
    switch (lanes) {
        case 1: return pool_lanes<1>(step, x, out);
        case 2: return pool_lanes<2>(step, x, out);
        case 4: return pool_lanes<4>(step, x, out);
        case 8: return pool_lanes<8>(step, x, out);
        case 16: return pool_lanes<16>(step, x, out);
        default: return pool_lanes<32>(step, x, out);
    }
}

}  // namespace bayesbin
