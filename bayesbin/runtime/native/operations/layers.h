// Layers: sums of inputs with weights that are signs, or with real ones.
#pragma once

#include "../step.h"
#include "geometry.h"

namespace bayesbin {

// How sums with signs are computed.
enum class Kind : int64_t {
    REAL = 0,    // in float32 or float64, in the order of tables.inl
    FAST = 1,    // of float32 in 16-bit numbers; convolutions as REAL
    SIGN = 2,    // inputs are signs: whole numbers, exact in float32
    DECIDE = 3,       // float32 inputs, sums of float64, signs come out: see decide.inl
    DECIDE_SIGN = 4,  // inputs are signs, and so is what comes out
};

// Thresholds of decisions, and their directions: numbers for each unit, float64. Sums that are not numbers may
// be marked, for a maximum behind the decision to see them.
struct Decision {
    Numbers t, d;
    Marks marks = Marks::NONE;
};

// Turn rows of ceil(inputs/64) words into columns.
void to_columns(const uint64_t* rows, int64_t units, int64_t inputs, uint64_t* columns);

// A little more than the units: columns a power of two apart would share their cache sets.
inline int64_t column_stride(int64_t units) { return (units + 7) / 8 * 8 + 8; }

// Weights that are the signs of a site.
class SignLayer : public Step {
public:
    SignLayer(Value x, const Geometry& geometry, Site site, Kind kind, Type type, Decision decision = {});
    bool prepare(const Context& context, State& state) const override;
    void run(const Block& block) const override;

private:
    bool draw(const Context& context, State& state) const;
    void prepare_decisions(const Context& context, State& state) const;
    void run_row(const Block& block) const;
    void decide(const Block& block) const;
    void decide_sign(const Block& block) const;

    Geometry geometry_;
    Site site_;
    Kind kind_;
    Decision decision_;
};

// Real weights, (units, inputs), and perhaps a bias for each unit.
class RealLayer : public Step {
public:
    RealLayer(Value x, const Geometry& geometry, Numbers weights, Numbers bias, Type type);
    bool prepare(const Context& context, State& state) const override;
    void run(const Block& block) const override;

private:
    Geometry geometry_;
    Numbers weights_, bias_;
    bool exact_;  // whether inputs and weights are float32 numbers
};

}  // namespace bayesbin
