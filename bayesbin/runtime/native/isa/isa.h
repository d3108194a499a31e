// An isa: the kernels compiled for one set of instructions. All isas compute the same numbers, bit for
// bit; they differ in speed alone.
//
// Activations are kept in lanes: 1, 2, 4, 8, 16 or 32 rows of the batch side by side, value k of row r
// at x[k * lanes + r]. Every step of a network is then a loop over contiguous vectors, and a row's
// result cannot depend on its neighbours. The sums take 8, 16 or 32 lanes, which may be rows or, in an
// image, neighbouring pixels of one or more rows (operations/tiles.h). Signs of weights are words of 64
// bits in columns: word w of unit n is words[w * stride + n], bit k % 64 of word k / 64 belonging to
// input k.
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

// The signs that sums are taken with: word w of unit n at words[w * stride + n].
struct Bits {
    const uint64_t* words;
    int64_t stride, units;
};

// Where sums go: unit n's lanes at data + n * step. `partial` is scratch for units * lanes numbers, and
// may be `data` where the step is the number of lanes.
template <class T>
struct SumsOut {
    T* data;
    int64_t step;
    T* partial;
};

// What values are compared with: +1 where d (x - t) >= 0, for each channel; otherwise -1.
struct Thresholds {
    const double *t, *d;
};

// The same for sums of real inputs, unit by unit; beside them t in float32, a margin for what it is off by,
// and the sign of d.
enum class Marks { NONE = 0, RISING = 1, ALL = 2 };  // sums that are not numbers: where d >= 0, or everywhere
struct RealDecisions {
    const double *t, *d;
    const float *near, *margin, *toward;
    Marks marks;
};
constexpr int8_t NOT_A_NUMBER = 2;

// For sums of at most MOST_SIGNS signs: +1 where the limit is reached, or, where `turned` is -1 and not 0, is
// not.
struct WholeDecisions {
    const int16_t *limit, *turned;
};
constexpr int64_t MOST_SIGNS = 511 * 64;  // words of signs whose sums fit 16 bits

// Values in the order of their places, seen as (outer, channels, inner); inner counts the lanes too.
struct Channels {
    int64_t outer, channels, inner;
    int64_t size() const { return outer * channels * inner; }
};

enum class Unary : int64_t { RELU = 0, CLAMP = 1, TANH = 2, LEAKY_RELU = 3, ABS = 4, NEG = 5 };
enum class Binary : int64_t { ADD = 0, SUB = 1, MUL = 2, MAXIMUM = 3, MINIMUM = 4 };

// What is computed in float32 and in float64 alike, each step rounded to T. Elementwise kernels may write
// where they read.
template <class T>
struct Arithmetic {
    // out_nr = sum_k w_nk x_kr, where inputs[k] points at the lanes of x_k: at least one input. `tables`
    // is scratch of TABLE_BYTES.
    void (*sum)(const T* const* inputs, int64_t count, int lanes, Bits bits, SumsOut<T> out, void* tables);

    // out_nr = sum_k w_nk x_kr + bias_n with real weights, w_nk at weights[n * count + k]: products and
    // sums in float64, in the order of k, rounded once. A null bias is none. exact: whether all inputs and
    // weights are float32 numbers.
    void (*weigh)(bool exact, const double* const* inputs, int64_t count, int lanes,
                  const double* weights, const double* bias, int64_t units, T* out, int64_t step);

    void (*unary)(Unary op, const T* x, T* out, int64_t count, T a, T b);
    void (*binary)(Binary op, const T* a, const T* b, T* out, int64_t count);
    // With a number for each of `count` values, in all lanes; second: whether the numbers come second.
    void (*with_numbers)(Binary op, const T* x, const T* numbers, bool second, T* out, int64_t count,
                         int64_t lanes);
    void (*affine)(const T* x, const T* slope, const T* shift, T* out, Channels c);
    void (*add_bias)(const T* x, const T* bias, T* out, Channels c);
    void (*prelu)(const T* x, const T* slope, T* out, Channels c);
    void (*sign)(const T* x, int8_t* out, int64_t count);  // +1 at 0 and at -0
    void (*threshold)(const T* x, Thresholds thresholds, int8_t* out, Channels c);
    void (*widen)(const int8_t* x, T* out, int64_t count);

    // Of each channel deviations from `centre` and their squares, added to what is there: see batch.inl.
    void (*deviations)(const T* x, const double* centre, double* sums, double* squares, Channels c);
    void (*standardise)(T* x, const T* mean, const T* slope, const T* shift, Channels c);
};

struct Isa {
    const char* name;
    bool (*runs_here)();

    // Draw units [first, last) of a site; mode in rows of ceil(K/64) words, thresholds (N, K).
    void (*draw)(const uint64_t* mode, const uint16_t* thresholds, uint64_t key, int64_t inputs,
                 int64_t first, int64_t last, BitsOut out);

    Arithmetic<float> f4;
    Arithmetic<double> f8;

    // As Arithmetic::sum, of signs: -1, 0 (padding) or +1, summed exactly.
    void (*sum_sign)(const int8_t* const* inputs, int64_t count, int lanes, Bits bits, SumsOut<float> out,
                     void* tables);
    // As Arithmetic::sum in 16-bit numbers: see fast.inl. `scratch` has fast_bytes(K, N, lanes) bytes.
    void (*sum_fast)(const float* const* inputs, int64_t count, int lanes, Bits bits, SumsOut<float> out,
                     void* scratch, void* tables);
    // Decisions about the sums of Arithmetic<double>::sum, and of sum_sign: see decide.inl. Unit n's lanes go
    // to out + n * step; `sums` and `partial` are scratch for units * lanes numbers.
    void (*decide)(const float* const* inputs, int64_t count, int lanes, Bits bits, RealDecisions decisions,
                   int8_t* out, int64_t step, float* sums, float* partial, void* tables);
    void (*decide_sign)(const int8_t* const* inputs, int64_t count, int lanes, Bits bits,
                        WholeDecisions decisions, int8_t* out, int64_t step, int16_t* partial,
                        void* tables);
    // The same for one row: sums of real inputs as Arithmetic<float>::sum (null where an isa has no faster way
    // than that), and decisions about them.
    void (*sum_row)(const float* x, int64_t count, Bits bits, float* out);
    void (*decide_row)(const float* x, int64_t count, Bits bits, RealDecisions decisions, const float* sums,
                       int8_t* out);
    void (*decide_sign_row)(const float* sums, int64_t units, WholeDecisions decisions, int8_t* out);
    // Maxima, or minima, of signs: into[i] and x[i]. NOT_A_NUMBER is the largest.
    void (*extreme)(bool maximum, const int8_t* x, int8_t* into, int64_t count);

    void (*narrow)(const double* x, float* out, int64_t count);
    void (*extend)(const float* x, double* out, int64_t count);
};

template <class T>
inline const Arithmetic<T>& arithmetic(const Isa& isa);
template <>
inline const Arithmetic<float>& arithmetic<float>(const Isa& isa) { return isa.f4; }
template <>
inline const Arithmetic<double>& arithmetic<double>(const Isa& isa) { return isa.f8; }

size_t fast_bytes(int64_t inputs, int64_t units, int lanes);

// The isas that this machine can run, best last. The first is always "portable".
const std::vector<const Isa*>& isas();

// The isa of that name; of an empty name the one that BAYESBIN_KERNEL asks for, or the best.
// Throws std::invalid_argument, in a sentence, for a name that is unknown or cannot run here.
const Isa& isa_named(const std::string& name);

}  // namespace bayesbin
