#include "layers.h"

#include <algorithm>

#include "tiles.h"

namespace bayesbin {

namespace {

constexpr int64_t DRAWN_AT_ONCE = 1 << 22;  // weights between two looks at the watch

std::string text(const Geometry& g) {
    return std::to_string(g.units) + " units of " + std::to_string(g.inputs()) + " inputs";
}

void check(const Geometry& g, const Value& x) {
    if (!g.y.fits() || !g.x.fits() || g.channels < 1 || g.units < 1 || g.groups < 1 ||
        g.positions < 1 || g.channels % g.groups || g.units % g.groups ||
        (g.positions > 1 && !g.linear()))
        refuse("has a window or groups that do not fit its images");
    if (g.features_in() != x.size)
        refuse("takes " + std::to_string(g.features_in()) + " numbers but gets " + std::to_string(x.size));
}

void check(const Numbers& numbers, int64_t size, const char* what) {
    if (numbers.size != size)
        refuse("has " + std::to_string(numbers.size) + " numbers for " + what + " where " +
               std::to_string(size) + " are needed");
}

}  // namespace

void to_columns(const uint64_t* rows, int64_t units, int64_t inputs, uint64_t* columns) {
    const int64_t words = ceil_div(inputs, 64), stride = column_stride(units);
    for (int64_t n0 = 0; n0 < units; n0 += 8)  // a cache line of a column at a time
        for (int64_t w = 0; w < words; ++w)
            for (int64_t n = n0; n < std::min(units, n0 + 8); ++n)
                columns[w * stride + n] = rows[n * words + w];
}

SignLayer::SignLayer(Value x, const Geometry& geometry, Site site, Kind kind, Type type, Decision decision)
    : geometry_(geometry), site_(std::move(site)), kind_(kind), decision_(std::move(decision)) {
    check(geometry_, x);
    if (site_.units != geometry_.units || site_.inputs != geometry_.inputs())
        refuse("has signs for " + std::to_string(site_.units) + " units of " +
               std::to_string(site_.inputs) + " inputs where " + text(geometry_) + " are needed");
    if (kind_ == Kind::DECIDE) {
        check(decision_.t, geometry_.units, "thresholds");
        check(decision_.d, geometry_.units, "directions");
    }
    const bool doubles = kind_ == Kind::REAL && type == Type::F8;
    wanted = {kind_ == Kind::SIGN ? Type::SIGN : doubles ? Type::F8 : Type::F4};
    value = {geometry_.features_out(),
             kind_ == Kind::DECIDE ? Type::SIGN : doubles ? Type::F8 : Type::F4};
}

bool SignLayer::prepare(const Context& context, State& state) const {
    const int64_t stride = column_stride(site_.units), words = ceil_div(site_.inputs, 64);
    const Draw& draw = context.draw;
    const int64_t key = site_.keys ? draw.number : site_.words.row(draw);
    if (state.key == key) return true;
    if (!state.words.get()) {
        state.words = Buffer<uint64_t>(size_t(words * stride));
        state.bytes = size_t(words * stride) * sizeof(uint64_t);
    }
    state.key = -1;
    const auto* rows = reinterpret_cast<const uint64_t*>(site_.words.at(draw));
    if (!site_.keys) {
        to_columns(rows, site_.units, site_.inputs, state.words.get());
        state.key = key;
        return true;
    }
    const auto* thresholds = reinterpret_cast<const uint16_t*>(site_.thresholds.at(draw));
    const int64_t piece = std::max<int64_t>(1, DRAWN_AT_ONCE / site_.inputs);
    for (int64_t n = 0; n < site_.units; n += piece) {
        if (context.watch.stopped()) return false;
        context.isa.draw(rows, thresholds, site_.keys[draw.number], site_.inputs, n,
                         std::min(site_.units, n + piece), {state.words.get(), 1, stride});
    }
    state.key = key;
    return true;
}

void SignLayer::run(const Block& block) const {
    const Geometry& g = geometry_;
    const Isa& isa = block.context.isa;
    const uint64_t* words = block.state.words.get();
    const int64_t stride = column_stride(g.units), count = g.inputs(), units = g.units / g.groups;
    const auto bits = [&](const auto& tile) { return Bits{words + tile.first, stride, tile.units}; };
    Scratch& scratch = block.scratch;
    uint8_t* tables = scratch.take<uint8_t>(TABLE_BYTES);
    const int64_t many = units * MAX_LANES;
    if (kind_ == Kind::SIGN) {
        float* partial = scratch.take<float>(many);
        each_sum(g, block.input<int8_t>(), block.lanes, block.output<float>(), scratch,
                 [&](const Tile<int8_t, float>& tile) {
                     isa.sum_sign(tile.inputs, count, tile.lanes, bits(tile),
                                  {tile.out, tile.step, partial}, tables);
                 });
        return;
    }
    if (kind_ == Kind::DECIDE) {
        float *partial = scratch.take<float>(many), *sums = scratch.take<float>(many);
        const auto* t = static_cast<const double*>(block.context.at(decision_.t));
        const auto* d = static_cast<const double*>(block.context.at(decision_.d));
        each_sum(g, block.input<float>(), block.lanes, block.output<int8_t>(), scratch,
                 [&](const Tile<float, int8_t>& tile) {
                     isa.decide(tile.inputs, count, tile.lanes, bits(tile),
                                Thresholds{t + tile.first, d + tile.first}, tile.out, tile.step, sums, partial,
                                tables);
                 });
        return;
    }
    if (kind_ == Kind::FAST && g.linear()) {
        float* partial = scratch.take<float>(many);
        uint8_t* fast = scratch.take<uint8_t>(int64_t(fast_bytes(count, units, MAX_LANES)));
        each_sum(g, block.input<float>(), block.lanes, block.output<float>(), scratch,
                 [&](const Tile<float, float>& tile) {
                     isa.sum_fast(tile.inputs, count, tile.lanes, bits(tile),
                                  {tile.out, tile.step, partial}, fast, tables);
                 });
        return;
    }
    with_type(value.type, [&](auto zero) {
        typedef decltype(zero) T;
        T* partial = scratch.take<T>(many);
        each_sum(g, block.input<T>(), block.lanes, block.output<T>(), scratch,
                 [&](const Tile<T, T>& tile) {
                     arithmetic<T>(isa).sum(tile.inputs, count, tile.lanes, bits(tile),
                                            {tile.out, tile.step, partial}, tables);
                 });
    });
}

RealLayer::RealLayer(Value x, const Geometry& geometry, Numbers weights, Numbers bias, Type type)
    : geometry_(geometry), weights_(std::move(weights)), bias_(std::move(bias)),
      exact_(x.type != Type::F8 && weights_.type == Type::F4) {
    check(geometry_, x);
    check(weights_, geometry_.units * geometry_.inputs(), "weights");
    if (bias_.size) check(bias_, geometry_.units, "a bias");
    wanted = {Type::F8};
    value = {geometry_.features_out(), type};
}

// The weights and then the bias, in float64.
bool RealLayer::prepare(const Context& context, State& state) const {
    const bool handed = weights_.argument >= 0 || bias_.argument >= 0;
    // Rows of the two: each a number of its own below 2^31.
    const int64_t key = handed ? -1 : weights_.rows.row(context.draw) << 31 ^ bias_.rows.row(context.draw);
    if (!handed && state.key == key) return true;
    if (!state.numbers.get()) {
        state.numbers = Buffer<double>(size_t(weights_.size + bias_.size));
        state.bytes = size_t(weights_.size + bias_.size) * sizeof(double);
    }
    double* to = state.numbers.get();
    for (const Numbers* numbers : {&weights_, &bias_}) {
        if (!numbers->size) continue;
        with_type(numbers->type, [&](auto zero) {
            const auto* from = static_cast<const decltype(zero)*>(context.at(*numbers));
            std::copy_n(from, numbers->size, to);
        });
        to += numbers->size;
    }
    state.key = key;
    return true;
}

void RealLayer::run(const Block& block) const {
    const Geometry& g = geometry_;
    const int64_t count = g.inputs();
    const double* weights = block.state.numbers.get();
    const double* bias = bias_.size ? weights + weights_.size : nullptr;
    with_type(value.type, [&](auto zero) {
        typedef decltype(zero) T;
        each_sum(g, block.input<double>(), block.lanes, block.output<T>(), block.scratch,
                 [&](const Tile<double, T>& tile) {
                     arithmetic<T>(block.context.isa)
                         .weigh(exact_, tile.inputs, count, tile.lanes, weights + tile.first * count,
                                bias ? bias + tile.first : nullptr, tile.units, tile.out, tile.step);
                 });
    });
}

}  // namespace bayesbin
