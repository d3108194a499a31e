// What a program is made of: values in slots, numbers and signs that all rows share, and steps.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa/isa.h"
#include "memory.h"
#include "parallel.h"

namespace bayesbin {

// How values lie in memory. Values that are signs are kept in a byte each, whatever their type.
enum class Type : uint8_t { F4, F8, SIGN };

inline int64_t bytes_of(Type type) { return type == Type::F4 ? 4 : type == Type::F8 ? 8 : 1; }
inline const char* name_of(Type type) {
    return type == Type::F4 ? "float32" : type == Type::F8 ? "float64" : "signs";
}

[[noreturn]] inline void refuse(const std::string& what) {
    throw std::invalid_argument("A step of the program " + what + ".");
}

// A draw: its number in the program, and its place among the draws of a call.
struct Draw {
    int64_t number = 0, place = 0;
};

// Whatever keeps an array's memory where it is.
typedef std::shared_ptr<const void> Owner;

// Rows of bytes in memory that others own, one of which a draw uses: row rows[draw]; without `rows`
// there is one row for all draws.
struct Rows {
    const char* data = nullptr;
    int64_t row_bytes = 0, count = 0;
    const int64_t* rows = nullptr;
    std::vector<Owner> owners;

    int64_t row(const Draw& draw) const { return rows ? rows[draw.number] : 0; }
    const char* at(const Draw& draw) const { return data + row(draw) * row_bytes; }
};

// Numbers that all rows of the batch share. Those without data are handed over with each call: one row
// for all draws, or one for each draw of the call.
struct Numbers {
    Type type = Type::F4;
    int64_t size = 0;
    Rows rows;
    int argument = -1;  // the place among what is handed over
};

// Signs of weights, N units of K inputs: drawn where there are keys, or else stored.
struct Site {
    int64_t units = 0, inputs = 0;
    Rows words;       // the mode, or the signs themselves: (N, ceil(K/64)) words
    Rows thresholds;  // (N, K) of 16 bits
    const uint64_t* keys = nullptr;
    Owner keys_owner;
};

// Numbers that a call hands over: `step` numbers lie between one draw and the next.
struct Argument {
    const void* data;
    int64_t step;
};

// What is true while the steps of a draw run.
struct Context {
    const Isa& isa;
    Draw draw;
    const std::vector<Argument>* arguments;
    Watch& watch;

    const void* at(const Numbers& numbers) const {
        if (numbers.argument < 0) return numbers.rows.at(draw);
        const Argument& given = (*arguments)[size_t(numbers.argument)];
        return static_cast<const char*>(given.data) +
               draw.place * given.step * bytes_of(numbers.type);
    }
};

// What a worker keeps for a step from one block to the next: made for a draw, or for what several draws
// share. `key` and `draw` say for which.
struct State {
    Buffer<uint64_t> words;
    Buffer<double> numbers;
    Buffer<float> near;
    Buffer<int16_t> limits;
    size_t bytes = 0;
    int64_t key = -1, draw = -1;
};

// One block of rows on its way through a step: values in lanes.
struct Block {
    const Context& context;
    const State& state;
    int lanes;
    const void* const* in;
    void* out;
    Scratch& scratch;

    template <class T>
    const T* input(size_t place = 0) const { return static_cast<const T*>(in[place]); }
    template <class T>
    T* output() const { return static_cast<T*>(out); }
};

// A value: `size` numbers for each row.
struct Value {
    int64_t size;
    Type type;
};

class Step {
public:
    virtual ~Step() = default;

    std::vector<int> inputs;     // slots
    std::vector<Type> wanted;    // as what the step reads its inputs
    int output = -1;
    Value value{};               // what comes out
    bool in_place = false;       // whether it may write where its first input lies, of the same type

    // Make the state for a draw. False if the watch stopped it.
    virtual bool prepare(const Context&, State&) const { return true; }
    virtual void run(const Block& block) const = 0;
};

// Call what(T()) with the type that numbers of a program have.
template <class What>
void with_type(Type type, const What& what) {
    if (type == Type::F4)
        what(float());
    else
        what(double());
}

}  // namespace bayesbin
