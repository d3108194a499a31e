#include "layers.h"

#include <algorithm>
#include <cmath>
#include <limits>

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
    const bool decides = kind_ == Kind::DECIDE || kind_ == Kind::DECIDE_SIGN;
    if (decides) {
        check(decision_.t, geometry_.units, "thresholds");
        check(decision_.d, geometry_.units, "directions");
        if (decision_.t.type != Type::F8 || decision_.d.type != Type::F8)
            refuse("has thresholds of another type than float64");
    }
    if (kind_ == Kind::DECIDE_SIGN && site_.inputs > MOST_SIGNS)
        refuse("decides about sums of more than " + std::to_string(MOST_SIGNS) + " signs");
    const bool signs = kind_ == Kind::SIGN || kind_ == Kind::DECIDE_SIGN;
    const bool doubles = kind_ == Kind::REAL && type == Type::F8;
    wanted = {signs ? Type::SIGN : doubles ? Type::F8 : Type::F4};
    value = {geometry_.features_out(), decides ? Type::SIGN : doubles ? Type::F8 : Type::F4};
}

bool SignLayer::prepare(const Context& context, State& state) const {
    if (!draw(context, state)) return false;
    if (decision_.t.size) prepare_decisions(context, state);
    return true;
}

// Thresholds in the types in which they are compared.
void SignLayer::prepare_decisions(const Context& context, State& state) const {
    const bool handed = decision_.t.argument >= 0 || decision_.d.argument >= 0;
    if (!handed && state.draw == context.draw.number) return;
    state.draw = handed ? -1 : context.draw.number;
    const int64_t units = geometry_.units;
    const auto* t = static_cast<const double*>(context.at(decision_.t));
    const auto* d = static_cast<const double*>(context.at(decision_.d));
    if (kind_ == Kind::DECIDE) {
        if (!state.near.get()) state.near = Buffer<float>(size_t(3 * units));
        float *near = state.near.get(), *margin = near + units, *toward = margin + units;
        for (int64_t n = 0; n < units; ++n) {
            constexpr double MOST = std::numeric_limits<float>::max();
            constexpr float INFINITE = std::numeric_limits<float>::infinity();
            const double size = std::abs(t[n]);
            toward[n] = d[n] < 0.0 ? -1.0f : 1.0f;
            if (!(d[n] < 0.0 || d[n] > 0.0)) {  // every number reaches it
                near[n] = -INFINITE;
            } else if (t[n] != t[n]) {  // none does
                near[n] = toward[n] * INFINITE;
            } else {
                near[n] = size > MOST ? (t[n] < 0.0 ? -INFINITE : INFINITE) : float(t[n]);
            }
            // Infinite thresholds are exact; a finite one beyond float32 makes every sum unsure.
            const bool exact = std::isinf(near[n]) && !(size > MOST && std::isfinite(size));
            margin[n] = exact ? 0.0f : size > MOST ? INFINITE : float(size * 0x1p-22 + 1e-44);
        }
        return;
    }
    if (!state.limits.get()) state.limits = Buffer<int16_t>(size_t(2 * units));
    int16_t *limit = state.limits.get(), *turned = limit + units;
    for (int64_t n = 0; n < units; ++n) {
        const bool down = d[n] < 0.0;
        // sum >= t; sum <= t where it does not reach the next whole number
        double least = down ? std::floor(t[n]) + 1.0 : std::ceil(t[n]);
        if (!(d[n] < 0.0 || d[n] > 0.0)) least = -32768.0;
        if (t[n] != t[n] && (down || d[n] > 0.0)) least = down ? -32768.0 : 32767.0;
        limit[n] = int16_t(std::clamp(least, -32768.0, 32767.0));
        turned[n] = down ? -1 : 0;
    }
}

// Make the bits of a draw, in columns. False if the watch stopped it.
bool SignLayer::draw(const Context& context, State& state) const {
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

void SignLayer::decide(const Block& block) const {
    const Geometry& g = geometry_;
    const int64_t stride = column_stride(g.units), many = g.units / g.groups * MAX_LANES;
    const uint64_t* words = block.state.words.get();
    const float* near = block.state.near.get();
    const auto* t = static_cast<const double*>(block.context.at(decision_.t));
    const auto* d = static_cast<const double*>(block.context.at(decision_.d));
    uint8_t* tables = block.scratch.take<uint8_t>(TABLE_BYTES);
    float *partial = block.scratch.take<float>(many), *sums = block.scratch.take<float>(many);
    each_sum(g, block.input<float>(), block.lanes, block.output<int8_t>(), block.scratch,
             [&](const Tile<float, int8_t>& tile) {
                 const int64_t n = tile.first;
                 const RealDecisions decisions{t + n, d + n, near + n, near + g.units + n,
                                               near + 2 * g.units + n, decision_.marks};
                 block.context.isa.decide(tile.inputs, g.inputs(), tile.lanes, {words + n, stride, tile.units},
                                          decisions, tile.out, tile.step, sums, partial, tables);
             });
}

void SignLayer::decide_sign(const Block& block) const {
    const Geometry& g = geometry_;
    const int64_t stride = column_stride(g.units), many = g.units / g.groups * MAX_LANES;
    const uint64_t* words = block.state.words.get();
    const int16_t* limits = block.state.limits.get();
    uint8_t* tables = block.scratch.take<uint8_t>(TABLE_BYTES);
    int16_t* partial = block.scratch.take<int16_t>(many);
    each_sum(g, block.input<int8_t>(), block.lanes, block.output<int8_t>(), block.scratch,
             [&](const Tile<int8_t, int8_t>& tile) {
                 const int64_t n = tile.first;
                 block.context.isa.decide_sign(tile.inputs, g.inputs(), tile.lanes,
                                               {words + n, stride, tile.units},
                                               {limits + n, limits + g.units + n}, tile.out, tile.step,
                                               partial, tables);
             });
}

// One row by itself: the units are the lanes.
void SignLayer::run_row(const Block& block) const {
    const Isa& isa = block.context.isa;
    const int64_t count = geometry_.channels, units = geometry_.units;
    const Bits bits{block.state.words.get(), column_stride(units), units};
    const bool signs = wanted[0] == Type::SIGN;
    const float* x = block.input<float>();
    if (signs) {
        float* wide = block.scratch.take<float>(count);
        isa.f4.widen(block.input<int8_t>(), wide, count);
        x = wide;
    }
    if (value.type != Type::SIGN) return isa.sum_row(x, count, bits, block.output<float>());
    float* sums = block.scratch.take<float>(units);
    isa.sum_row(x, count, bits, sums);
    if (signs) {
        const int16_t* limits = block.state.limits.get();
        return isa.decide_sign_row(sums, units, {limits, limits + units}, block.output<int8_t>());
    }
    const float* near = block.state.near.get();
    const auto* t = static_cast<const double*>(block.context.at(decision_.t));
    const auto* d = static_cast<const double*>(block.context.at(decision_.d));
    isa.decide_row(x, count, bits, {t, d, near, near + units, near + 2 * units, decision_.marks}, sums,
                   block.output<int8_t>());
}

void SignLayer::run(const Block& block) const {
    const bool row = block.lanes == 1 && geometry_.positions == 1 && geometry_.linear();
    if (row && block.context.isa.sum_row && kind_ != Kind::FAST && value.type != Type::F8)
        return run_row(block);
    if (kind_ == Kind::DECIDE) return decide(block);
    if (kind_ == Kind::DECIDE_SIGN) return decide_sign(block);
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
