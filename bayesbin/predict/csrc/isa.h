// A isa: the kernels compiled for one set of instructions. All isas compute the same numbers, bit for
// bit; they differ in speed alone.
//
// Activations are kept in lanes: 1, 2, 4, 8, 16 or 32 rows of the batch side by side, value k of row r
// at x[k * lanes + r]. Every step of a network is then a loop over contiguous vectors, and a row's
// result cannot depend on its neighbours. The sums take 8, 16 or 32 lanes, which may be rows or, in an
// image, neighbouring pixels of one or more rows (convolution.h). Weights are words of 64 bits in columns: word w of unit n is
// words[w * stride + n], bit k % 64 of word k / 64 belonging to input k.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace bayesbin {

constexpr int MAX_LANES = 32, FEWEST_LANES = 8;  // of the sums
constexpr size_t TABLE_BYTES = 32768;  // as much of the first-level cache as the tables may fill

// The fewest lanes that hold `rows` rows.
static inline int lanes_for(int64_t rows) {
    int lanes = 1;
    while (lanes < rows && lanes < MAX_LANES) lanes *= 2;
    return lanes;
}

// Where drawn or given bits go: word w of unit n is at data[n * unit_step + w * word_step].
struct BitsOut {
    uint64_t* data;
    int64_t unit_step, word_step;
};

// Where sums go: unit n's lanes at data + n * step. `partial` is scratch for units * lanes numbers, and
// may be `data` where the step is the number of lanes.
struct SumsOut {
    float* data;
    int64_t step;
    float* partial;
};

struct Isa {
    const char* name;
    bool (*runs_here)();

    // Draw units [first, last) of a site; mode in rows of ceil(K/64) words, thresholds (N, K).
    void (*draw)(const uint64_t* mode, const uint16_t* thresholds, uint64_t key, int64_t inputs,
                 int64_t first, int64_t last, BitsOut out);

    // out_nr = sum_k w_nk x_kr, where inputs[k] points at the lanes of x_k: at least one input. `tables`
    // is scratch of TABLE_BYTES. Signs are -1, 0 (padding) or +1, summed exactly.
    void (*sum_real)(const float* const* inputs, int64_t count, int lanes, const uint64_t* words,
                     int64_t stride, int64_t units, SumsOut out, void* tables);
    void (*sum_sign)(const int8_t* const* inputs, int64_t count, int lanes, const uint64_t* words,
                     int64_t stride, int64_t units, SumsOut out, void* tables);

    // As sum_real in 16-bit numbers: see fast.inl. `scratch` has fast_bytes(K, N, lanes) bytes.
    void (*sum_fast)(const float* const* inputs, int64_t count, int lanes, const uint64_t* words,
                     int64_t stride, int64_t units, SumsOut out, void* scratch, void* tables);

    // out (M, N) = sum_k x_mk w_nk, both operands in rows of ceil(K/64) words.
    void (*xnor)(const uint64_t* x, int64_t rows, const uint64_t* w, int64_t units, int64_t inputs,
                 int32_t* out);

    // Elementwise steps over `count` numbers, in place.
    void (*affine)(float* x, int64_t count, float a, float b);
    void (*relu)(float* x, int64_t count);
    void (*clamp)(float* x, int64_t count, float low, float high);
    void (*tanh)(float* x, int64_t count);
    void (*sign)(float* x, int64_t count);
    void (*to_int8)(const float* x, int64_t count, int8_t* out);  // signs, as integers
    void (*add)(float* into, const float* x, int64_t count);
};

size_t fast_bytes(int64_t inputs, int64_t units, int lanes);

// The isas that this machine can run, best last. The first is always "portable".
const std::vector<const Isa*>& isas();

// The isa of that name; of an empty name the one that BAYESBIN_KERNEL asks for, or the best.
// Throws std::invalid_argument, in a sentence, for a name that is unknown or cannot run here.
const Isa& isa_named(const std::string& name);

}  // namespace bayesbin
