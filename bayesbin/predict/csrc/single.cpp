#include "single.h"

#include <algorithm>
#include <vector>

#include "canonical.h"

namespace bayesbin {

namespace {

constexpr int64_t TILE = 16;  // features transposed at once: their lanes stay in the first-level cache
constexpr int64_t PIECE_OF_WORK = 1 << 22;  // weights or products between two looks at the watch
constexpr int64_t FEWEST_UNITS = 64;        // in a share: they all use the same tables

// Load rows into lanes, apply the layer, store lanes into rows: in blocks of rows and, where there are
// fewer blocks than threads, in shares of the units. A few images fill the lanes with their pixels as
// well as many do, and stay nearer in the caches.
template <class Load, class Store>
void in_blocks(const Isa& isa, Kind kind, const Geometry& g, int64_t rows, const uint64_t* bits,
               int threads, Watch& watch, const Load& load, const Store& store) {
    struct Worker {
        Scratch scratch;
        Buffer<float> x, out;
    };
    if (rows == 0 || g.units == 0) return;
    const int64_t most = std::min<int64_t>(rows, g.linear() ? MAX_LANES : FEWEST_LANES);
    const int64_t stride = column_stride(g.units), pixels = g.out_height() * g.out_width();
    Buffer<uint64_t> columns(size_t(ceil_div(g.inputs(), 64) * stride));
    to_columns(bits, g.units, g.inputs(), columns.get());
    const int64_t blocks = ceil_div(rows, most);
    const int64_t wanted = std::clamp<int64_t>(threads / blocks, 1, ceil_div(g.units, FEWEST_UNITS));
    Geometry part = g;
    part.units = ceil_div(g.units, wanted);
    const int64_t parts = ceil_div(g.units, part.units);
    threads = int(std::clamp<int64_t>(threads, 1, blocks * parts));
    std::vector<Worker> workers(static_cast<size_t>(threads));
    for (Worker& w : workers) {
        w.scratch.announce(part, kind, lanes_for(most));
        w.scratch.allocate();
        w.x = Buffer<float>(size_t(g.features_in() * lanes_for(most)));
        w.out = Buffer<float>(size_t(part.features_out() * lanes_for(most)));
    }
    run_units(blocks * parts, threads, watch, [&](int64_t index, int worker) {
        Worker& w = workers[size_t(worker)];
        const int64_t first = index / parts * most, unit = index % parts * part.units;
        const int64_t count = std::min(rows - first, most);
        const int lanes = lanes_for(count);
        Geometry share = g;
        share.units = std::min(part.units, g.units - unit);
        load(first, lanes, w.x.get());
        apply_weights(isa, kind, share, {columns.get() + unit, stride}, w.x.get(), lanes, w.out.get(),
                      w.scratch);
        store(first, count, lanes, w.out.get(), unit * pixels, share.features_out());
    });
}

// Features [from, from + some) of rows of `features`.
template <class T>
void from_lanes(const float* x, int lanes, int64_t first, int64_t count, int64_t from, int64_t some,
                int64_t features, T* out) {
    for (int64_t k0 = 0; k0 < some; k0 += TILE)
        for (int64_t r = 0; r < count; ++r)
            for (int64_t k = k0; k < std::min(some, k0 + TILE); ++k)
                out[(first + r) * features + from + k] = T(x[k * lanes + r]);
}

}  // namespace

void to_lanes(const float* x, int64_t rows, int64_t first, int64_t features, int lanes, float* out) {
    for (int64_t k0 = 0; k0 < features; k0 += TILE)
        for (int r = 0; r < lanes; ++r) {
            const bool there = first + r < rows;
            const float* row = x + (first + r) * features;
            for (int64_t k = k0; k < std::min(features, k0 + TILE); ++k)
                out[k * lanes + r] = there ? row[k] : 0.0f;
        }
}

void draw_rows(const Isa& isa, const uint64_t* mode, const uint16_t* thresholds, uint64_t key,
               int64_t units, int64_t inputs, uint64_t* out, int threads, Watch& watch) {
    const int64_t words = ceil_div(inputs, 64);
    if (units == 0 || inputs == 0) return;
    const int64_t piece =
        std::max<int64_t>(1, std::min(PIECE_OF_WORK / inputs, ceil_div(units, threads)));
    run_units(ceil_div(units, piece), threads, watch, [&](int64_t unit, int) {
        isa.draw(mode, thresholds, key, inputs, unit * piece, std::min(units, (unit + 1) * piece),
                  {out, words, 1});
    });
}

void weighted_rows(const Isa& isa, Kind kind, const Geometry& g, const float* x, int64_t rows,
                   const uint64_t* bits, float* out, int threads, Watch& watch) {
    in_blocks(
        isa, kind, g, rows, bits, threads, watch,
        [&](int64_t first, int lanes, float* to) {
            to_lanes(x, rows, first, g.features_in(), lanes, to);
        },
        [&](int64_t first, int64_t count, int lanes, const float* x, int64_t from, int64_t some) {
            from_lanes(x, lanes, first, count, from, some, g.features_out(), out);
        });
}

void weighted_bits(const Isa& isa, const Geometry& g, const uint64_t* x, int64_t rows,
                   const uint64_t* bits, int32_t* out, int threads, Watch& watch) {
    const int64_t features = g.features_in(), words = ceil_div(features, 64);
    in_blocks(
        isa, Kind::SIGN, g, rows, bits, threads, watch,
        [&](int64_t first, int lanes, float* to) {
            for (int r = 0; r < lanes; ++r) {
                const uint64_t* row = x + std::min(first + r, rows - 1) * words;
                for (int64_t k = 0; k < features; ++k)
                    to[k * lanes + r] = row[k / 64] >> (k % 64) & 1 ? 1.0f : -1.0f;
            }
        },
        [&](int64_t first, int64_t count, int lanes, const float* x, int64_t from, int64_t some) {
            from_lanes(x, lanes, first, count, from, some, g.features_out(), out);
        });
}

void xnor_rows(const Isa& isa, const uint64_t* x, int64_t rows, const uint64_t* bits, int64_t units,
               int64_t inputs, int32_t* out, int threads, Watch& watch) {
    const int64_t words = ceil_div(inputs, 64);
    const int64_t most = 64 * PIECE_OF_WORK / std::max<int64_t>(1, units * inputs);
    const int64_t piece = std::max<int64_t>(2, std::min(most, ceil_div(rows, threads)));
    run_units(ceil_div(rows, piece), threads, watch, [&](int64_t unit, int) {
        const int64_t first = unit * piece, count = std::min(rows - first, piece);
        isa.xnor(x + first * words, count, bits, units, inputs, out + first * units);
    });
}

}  // namespace bayesbin
