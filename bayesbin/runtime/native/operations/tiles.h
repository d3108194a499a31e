// How outputs are put into lanes. Those of a linear layer: the rows of the batch, and where these are few
// also several positions. Those of a convolution: neighbouring outputs of a row of the image, each for all
// rows of the batch, lie side by side, and so does what one weight needs for them.
#pragma once

#include <algorithm>
#include <cstring>

#include "../memory.h"
#include "geometry.h"

namespace bayesbin {

// What the sums of one tile are taken over and where they go: inputs[k] points at the lanes of input k;
// unit n's lanes go to out + n * step. Units [first, first + units).
template <class T, class Out>
struct Tile {
    const T* const* inputs;
    int lanes;
    int64_t first, units;
    Out* out;
    int64_t step;
};

// The numbers of an image that one weight meets, (channel, y, phase, x, row of the batch): padded, and
// with the columns sorted by their phase, x modulo the step.
template <class T>
struct Plane {
    const T* data;
    int64_t channel, row, phase;  // distances
};

// The image x (channels, height, width) in lanes as a plane.
template <class T>
Plane<T> lay_out(const Geometry& g, const T* x, int lanes, Scratch& scratch) {
    if (g.x.step == 1 && g.x.plain() && g.y.low == 0 && g.y.high == 0)
        return {x, g.y.size * g.x.size * lanes, g.x.size * lanes, 0};
    const int64_t height = g.y.padded(), columns = ceil_div(g.x.padded(), g.x.step);
    const int64_t phase = columns * lanes, row = g.x.step * phase;
    T* room = scratch.take<T>(g.channels * height * row);
    std::fill_n(room, g.channels * height * row, T(0));
    for (int64_t c = 0; c < g.channels; ++c)
        for (int64_t y = 0; y < g.y.size; ++y, x += g.x.size * lanes) {
            T* to = room + (c * height + y + g.y.low) * row;
            if (g.x.step == 1) {
                std::copy_n(x, g.x.size * lanes, to + g.x.low * lanes);
                continue;
            }
            for (int64_t xx = 0; xx < g.x.size; ++xx) {
                const int64_t at = xx + g.x.low;
                std::copy_n(x + xx * lanes, lanes, to + at % g.x.step * phase + at / g.x.step * lanes);
            }
        }
    return {room, height * row, row, phase};
}

// Where the inputs of output (0, 0) of the first group are, in the weights' order (channel, y, x).
template <class T>
void place_inputs(const Geometry& g, const Plane<T>& plane, int lanes, int64_t* places) {
    for (int64_t c = 0; c < g.channels / g.groups; ++c)
        for (int64_t y = 0; y < g.y.window; ++y)
            for (int64_t x = 0; x < g.x.window; ++x) {
                const int64_t at = x * g.x.dilation;
                *places++ = c * plane.channel + y * g.y.dilation * plane.row +
                            at % g.x.step * plane.phase + at / g.x.step * lanes;
            }
}

constexpr int PIECE = 8;  // outputs side by side, of one row of the image
constexpr int MOST_PIECES = MAX_LANES / PIECE;

// Up to 32 outputs that are computed at once: where the pieces' inputs and outputs begin.
struct Pieces {
    int count = 0, valid = PIECE;  // outputs of a piece that exist
    int64_t from[MOST_PIECES], to[MOST_PIECES];

    // All pieces in one piece.
    bool whole() const {
        for (int i = 1; i < count; ++i)
            if (from[i] != from[0] + i * PIECE || to[i] != to[0] + i * PIECE) return false;
        return valid == PIECE;
    }
};

// Call each(pieces) until every output of a unit has been covered. A row's last piece overlaps the one
// before it rather than be a part of a piece: an output is the same number however often it is computed.
template <class Each>
void each_tile(const Geometry& g, int64_t plane_row, int lanes, const Each& each) {
    const int64_t length = g.out_width() * lanes;
    Pieces tile;
    tile.valid = int(std::min<int64_t>(length, PIECE));
    for (int64_t y = 0; y < g.out_height(); ++y)
        for (int64_t start = 0; start < length; start += PIECE) {
            const int64_t at = std::max<int64_t>(0, std::min(start, length - PIECE));
            tile.from[tile.count] = y * g.y.step * plane_row + at;
            tile.to[tile.count++] = y * length + at;
            const bool last = y + 1 == g.out_height() && start + PIECE >= length;
            if (!last && tile.count < MOST_PIECES) continue;
            if (tile.count == 3) {  // 8, 16 or 32 lanes
                tile.from[3] = tile.from[2];
                tile.to[3] = tile.to[2];
                tile.count = 4;
            }
            each(tile);
            tile.count = 0;
        }
}

// The pieces side by side, for a tile that is not in one piece.
template <class T>
void gather(const Pieces& tile, const T* from, T* to) {
    for (int i = 0; i < tile.count; ++i, to += PIECE)
        if (tile.valid == PIECE)
            std::memcpy(to, from + tile.from[i], PIECE * sizeof(T));
        else
            for (int j = 0; j < tile.valid; ++j) to[j] = from[tile.from[i] + j];
}

template <class T>
void scatter(const Pieces& tile, const T* from, T* to) {
    for (int i = 0; i < tile.count; ++i, from += PIECE)
        if (tile.valid == PIECE)
            std::memcpy(to + tile.to[i], from, PIECE * sizeof(T));
        else
            for (int j = 0; j < tile.valid; ++j) to[tile.to[i] + j] = from[j];
}

// sum(tile) for all tiles of a convolution.
template <class T, class Out, class Sum>
void convolve(const Geometry& g, const T* x, int lanes, Out* out, Scratch& scratch, const Sum& sum) {
    const Plane<T> plane = lay_out(g, x, lanes, scratch);
    const int64_t count = g.inputs(), unit = g.pixels() * lanes;
    const int64_t units = g.units / g.groups, channels = g.channels / g.groups;
    int64_t* places = scratch.take<int64_t>(count);
    place_inputs(g, plane, lanes, places);
    const T** inputs = scratch.take<const T*>(count);
    T* gathered = scratch.take<T>(count * MAX_LANES);
    Out* sums = scratch.take<Out>(units * MAX_LANES);
    std::fill_n(gathered, count * MAX_LANES, T(0));  // lanes that no output uses are read too
    each_tile(g, plane.row, lanes, [&](const Pieces& tile) {
        const int width = tile.count * PIECE;
        const bool whole = tile.whole();
        for (int64_t group = 0; group < g.groups; ++group) {
            const T* data = plane.data + group * channels * plane.channel;
            Out* to = out + group * units * unit;
            if (whole) {
                for (int64_t k = 0; k < count; ++k) inputs[k] = data + places[k] + tile.from[0];
                sum(Tile<T, Out>{inputs, width, group * units, units, to + tile.to[0], unit});
                continue;
            }
            for (int64_t k = 0; k < count; ++k) {
                inputs[k] = gathered + k * width;
                gather(tile, data + places[k], gathered + k * width);
            }
            sum(Tile<T, Out>{inputs, width, group * units, units, sums, width});
            for (int64_t n = 0; n < units; ++n) scatter(tile, sums + n * width, to + n * unit);
        }
    });
}

// sum(tile) for all positions of a linear layer. Lanes are rows; with few rows also positions.
template <class T, class Out, class Sum>
void each_position(const Geometry& g, const T* x, int lanes, Out* out, Scratch& scratch, const Sum& sum) {
    const int64_t count = g.channels, units = g.units;
    const T** inputs = scratch.take<const T*>(count);
    const int64_t most = std::min<int64_t>(g.positions, MAX_LANES / lanes);  // positions at once
    if (most == 1 && lanes >= FEWEST_LANES) {
        for (int64_t p = 0; p < g.positions; ++p, x += count * lanes, out += units * lanes) {
            for (int64_t k = 0; k < count; ++k) inputs[k] = x + k * lanes;
            sum(Tile<T, Out>{inputs, lanes, 0, units, out, lanes});
        }
        return;
    }
    T* gathered = scratch.take<T>(count * MAX_LANES);
    Out* sums = scratch.take<Out>(units * MAX_LANES);
    for (int64_t p = 0; p < g.positions; p += most) {
        const int64_t some = std::min(most, g.positions - p), used = some * lanes;
        const int width = std::max(lanes_for(used), FEWEST_LANES);
        for (int64_t k = 0; k < count; ++k) {
            T* to = gathered + k * width;
            for (int64_t i = 0; i < some; ++i)
                std::copy_n(x + ((p + i) * count + k) * lanes, lanes, to + i * lanes);
            std::fill(to + used, to + width, T(0));
            inputs[k] = to;
        }
        sum(Tile<T, Out>{inputs, width, 0, units, sums, width});
        for (int64_t i = 0; i < some; ++i)
            for (int64_t n = 0; n < units; ++n)
                std::copy_n(sums + n * width + i * lanes, lanes, out + ((p + i) * units + n) * lanes);
    }
}

template <class T, class Out, class Sum>
void each_sum(const Geometry& g, const T* x, int lanes, Out* out, Scratch& scratch, const Sum& sum) {
    if (g.linear())
        each_position(g, x, lanes, out, scratch, sum);
    else
        convolve(g, x, lanes, out, scratch, sum);
}

}  // namespace bayesbin
