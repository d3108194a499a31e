// How a convolution's outputs are put into lanes: neighbouring outputs of a row of the image, each for
// all rows of the batch, lie side by side, and so does what one weight needs for them.
#pragma once

#include <algorithm>
#include <cstring>

#include "canonical.h"
#include "weighted.h"

namespace bayesbin {

// The numbers of an image that one weight meets, (channel, y, phase, x, row of the batch): padded, and
// with the columns sorted by their phase, x modulo the step.
template <class T>
struct Plane {
    const T* data;
    int64_t channel, row, phase;  // distances
};

inline int64_t plane_size(const Geometry& g) {
    const Window& w = g.window;
    return g.channels * (g.height + 2 * w.pad_y) * ceil_div(g.width + 2 * w.pad_x, w.step_x) * w.step_x;
}

// The image x (channels, height, width) in lanes as a plane, in `room` where it has to be moved.
template <class T>
Plane<T> lay_out(const Geometry& g, const T* x, int lanes, T* room) {
    const Window& w = g.window;
    if (w.step_x == 1 && w.pad_y == 0 && w.pad_x == 0)
        return {x, g.height * g.width * lanes, g.width * lanes, 0};
    const int64_t height = g.height + 2 * w.pad_y, columns = ceil_div(g.width + 2 * w.pad_x, w.step_x);
    const int64_t phase = columns * lanes, row = w.step_x * phase;
    std::fill_n(room, g.channels * height * row, T(0));
    for (int64_t c = 0; c < g.channels; ++c)
        for (int64_t y = 0; y < g.height; ++y, x += g.width * lanes) {
            T* to = room + (c * height + y + w.pad_y) * row;
            if (w.step_x == 1) {
                std::copy_n(x, g.width * lanes, to + w.pad_x * lanes);
                continue;
            }
            for (int64_t xx = 0; xx < g.width; ++xx) {
                const int64_t at = xx + w.pad_x;
                std::copy_n(x + xx * lanes, lanes, to + at % w.step_x * phase + at / w.step_x * lanes);
            }
        }
    return {room, height * row, row, phase};
}

// Where the inputs of output (0, 0) are, in the weights' order (channel, y, x).
template <class T>
void place_inputs(const Geometry& g, const Plane<T>& plane, int lanes, int64_t* places) {
    const Window& w = g.window;
    for (int64_t c = 0; c < g.channels; ++c)
        for (int64_t y = 0; y < w.height; ++y)
            for (int64_t x = 0; x < w.width; ++x)
                *places++ = c * plane.channel + y * plane.row + x % w.step_x * plane.phase +
                            x / w.step_x * lanes;
}

constexpr int PIECE = 8;  // outputs side by side, of one row of the image
constexpr int MOST_PIECES = MAX_LANES / PIECE;

// Up to 32 outputs that are computed at once: where the pieces' inputs and outputs begin.
struct Tile {
    int pieces = 0, valid = PIECE;  // outputs of a piece that exist
    int64_t from[MOST_PIECES], to[MOST_PIECES];

    // All pieces in one piece.
    bool whole() const {
        for (int i = 1; i < pieces; ++i)
            if (from[i] != from[0] + i * PIECE || to[i] != to[0] + i * PIECE) return false;
        return valid == PIECE;
    }
};

// Call each(tile) until every output of a unit has been covered. A row's last piece overlaps the one
// before it rather than be a part of a piece: an output is the same number however often it is computed.
template <class T, class Each>
void each_tile(const Geometry& g, const Plane<T>& plane, int lanes, const Each& each) {
    const int64_t length = g.out_width() * lanes;
    Tile tile;
    tile.valid = int(std::min<int64_t>(length, PIECE));
    for (int64_t y = 0; y < g.out_height(); ++y)
        for (int64_t start = 0; start < length; start += PIECE) {
            const int64_t at = std::max<int64_t>(0, std::min(start, length - PIECE));
            tile.from[tile.pieces] = y * g.window.step_y * plane.row + at;
            tile.to[tile.pieces++] = y * length + at;
            const bool last = y + 1 == g.out_height() && start + PIECE >= length;
            if (!last && tile.pieces < MOST_PIECES) continue;
            if (tile.pieces == 3) {  // 8, 16 or 32 lanes
                tile.from[3] = tile.from[2];
                tile.to[3] = tile.to[2];
                tile.pieces = 4;
            }
            each(tile);
            tile.pieces = 0;
        }
}

// The pieces side by side, for a tile that is not in one piece.
template <class T>
void gather(const Tile& tile, const T* from, T* to) {
    for (int i = 0; i < tile.pieces; ++i, to += PIECE)
        if (tile.valid == PIECE)
            std::memcpy(to, from + tile.from[i], PIECE * sizeof(T));
        else
            for (int j = 0; j < tile.valid; ++j) to[j] = from[tile.from[i] + j];
}

inline void scatter(const Tile& tile, const float* from, float* to) {
    for (int i = 0; i < tile.pieces; ++i, from += PIECE)
        if (tile.valid == PIECE)
            std::memcpy(to + tile.to[i], from, PIECE * sizeof(float));
        else
            for (int j = 0; j < tile.valid; ++j) to[tile.to[i] + j] = from[j];
}

// sum(inputs, lanes, to, step) for all tiles: unit n's sums to to + n * step.
template <class T, class Sum>
void convolve(const Geometry& g, const T* x, int lanes, float* out, Scratch& scratch, const Sum& sum) {
    const Plane<T> plane = lay_out(g, x, lanes, reinterpret_cast<T*>(scratch.plane.get()));
    int64_t* places = scratch.places.get();
    place_inputs(g, plane, lanes, places);
    const T** inputs = reinterpret_cast<const T**>(scratch.inputs.get());
    T* gathered = reinterpret_cast<T*>(scratch.gathered.get());
    float* sums = scratch.sums.get();
    const int64_t count = g.inputs(), unit = g.out_height() * g.out_width() * lanes;
    each_tile(g, plane, lanes, [&](const Tile& tile) {
        const int width = tile.pieces * PIECE;
        if (tile.whole()) {
            for (int64_t k = 0; k < count; ++k) inputs[k] = plane.data + places[k] + tile.from[0];
            sum(inputs, width, out + tile.to[0], unit);
            return;
        }
        for (int64_t k = 0; k < count; ++k) {
            inputs[k] = gathered + k * width;
            gather(tile, plane.data + places[k], gathered + k * width);
        }
        sum(inputs, width, sums, width);
        for (int64_t n = 0; n < g.units; ++n) scatter(tile, sums + n * width, out + n * unit);
    });
}

}  // namespace bayesbin
