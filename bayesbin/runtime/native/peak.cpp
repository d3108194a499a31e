// How near the kernels come to what the processor can do at all: beside the rate of each kernel, on a
// layer of 2048 x 2048 weights and 1024 rows, that of the instructions it cannot do without, on registers
// and one cache line, none waiting for another. The two take turns, as many as the first argument says.
// Prints JSON; a peak is null where the isa's instructions are not written down here.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "canonical.h"
#include "isa/isa.h"
#include "memory.h"
#include "operations/layers.h"

using namespace bayesbin;

namespace {

constexpr int64_t UNITS = 2048, INPUTS = 2048, ROWS = 1024, WORDS = INPUTS / 64;
constexpr int64_t ROUNDS = 1 << 15; // of the instructions, in one measurement

#ifdef BAYESBIN_X86
// An instruction with eight different registers to write to.
#define EIGHT(i)                                                                                       \
    i "0\n\t" i "1\n\t" i "2\n\t" i "3\n\t" i "4\n\t" i "5\n\t" i "6\n\t" i "7\n\t"
#define CLOBBERED "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "memory"
#define ROUNDS_OF(name, instructions)                                                                  \
    void name() {                                                                                      \
        alignas(64) static const char line[64] = {};                                                   \
        for (int64_t i = 0; i < ROUNDS; ++i) asm volatile(instructions : : "r"(line) : CLOBBERED);     \
        asm volatile("vzeroupper" : : : "memory");                                                     \
    }

ROUNDS_OF(add_floats_avx2, EIGHT("vaddps (%0), %%ymm8, %%ymm"))
ROUNDS_OF(add_halves_avx2, EIGHT("vpaddw (%0), %%ymm8, %%ymm"))
ROUNDS_OF(add_bytes_avx2, EIGHT("vpaddb (%0), %%ymm8, %%ymm"))
// The numbers of four words: a step of the counter, mix, and the comparison.
#define MULTIPLY_AVX2                                                                                  \
    EIGHT("vpmulld %%ymm8, %%ymm9, %%ymm") EIGHT("vpmuludq %%ymm8, %%ymm9, %%ymm")                     \
    EIGHT("vpsllq $32, %%ymm8, %%ymm") EIGHT("vpand %%ymm8, %%ymm9, %%ymm")                            \
    EIGHT("vpaddq %%ymm8, %%ymm9, %%ymm") EIGHT("vpaddq %%ymm8, %%ymm9, %%ymm")
#define XOR_SHIFTED_AVX2 EIGHT("vpsrlq $30, %%ymm8, %%ymm") EIGHT("vpxor %%ymm8, %%ymm9, %%ymm")
ROUNDS_OF(draw_words_avx2,
          EIGHT("vpaddq %%ymm8, %%ymm9, %%ymm") XOR_SHIFTED_AVX2 MULTIPLY_AVX2 XOR_SHIFTED_AVX2
          MULTIPLY_AVX2 XOR_SHIFTED_AVX2 EIGHT("vpsubusw (%0), %%ymm8, %%ymm")
          EIGHT("vpcmpeqw %%ymm8, %%ymm9, %%ymm"))

ROUNDS_OF(add_floats_avx512, EIGHT("vaddps (%0), %%zmm8, %%zmm"))
ROUNDS_OF(add_halves_avx512, EIGHT("vpaddw (%0), %%zmm8, %%zmm"))
ROUNDS_OF(add_bytes_avx512, EIGHT("vpaddb (%0), %%ymm8, %%ymm"))  // 32 lanes of bytes
#define XOR_SHIFTED_AVX512 EIGHT("vpsrlq $30, %%zmm8, %%zmm") EIGHT("vpxorq %%zmm8, %%zmm9, %%zmm")
ROUNDS_OF(draw_words_avx512,
          EIGHT("vpaddq %%zmm8, %%zmm9, %%zmm") XOR_SHIFTED_AVX512 EIGHT("vpmullq %%zmm8, %%zmm9, %%zmm")
          XOR_SHIFTED_AVX512 EIGHT("vpmullq %%zmm8, %%zmm9, %%zmm") XOR_SHIFTED_AVX512)
#endif

// What a kernel is bound by, and how many products (or weights) eight such groups of instructions do.
struct Peak {
    const char* instructions;
    void (*run)();
    double work;
};

Peak peak(const std::string& isa, int kernel) {
#ifdef BAYESBIN_X86
    // A look-up adds 4 inputs of each lane.
    const Peak avx2[4] = {{"load and add of 8 floats", add_floats_avx2, 8 * 8 * 4},
                          {"load and add of 16 halves", add_halves_avx2, 8 * 16 * 4},
                          {"load and add of 32 bytes", add_bytes_avx2, 8 * 32 * 4},
                          {"multiply, shift, xor, compare", draw_words_avx2, 8 * 16}};
    const Peak avx512[4] = {{"load and add of 16 floats", add_floats_avx512, 8 * 16 * 4},
                            {"load and add of 32 halves", add_halves_avx512, 8 * 32 * 4},
                            {"load and add of 32 bytes", add_bytes_avx512, 8 * 32 * 4},
                            {"multiply, shift, xor", draw_words_avx512, 8 * 32}};
    if (isa == "avx2") return avx2[kernel];
    if (isa == "avx512") return avx512[kernel];
#endif
    (void)isa, (void)kernel;
    return {"unknown", nullptr, 0.0};
}

// Processor time of this thread, so that other work on the machine counts less.
double seconds(const std::function<void()>& run) {
    timespec before, after;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    run();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    return double(after.tv_sec - before.tv_sec) + 1e-9 * double(after.tv_nsec - before.tv_nsec);
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

void print_rate(int turns, const char* kernel, const Peak& peak, double work,
                const std::function<void()>& run) {
    static bool first = true;
    std::vector<double> rates, peaks, ratios;
    run();
    for (int turn = 0; turn < turns; ++turn) {
        rates.push_back(work / seconds(run) * 1e-9);
        if (!peak.run) continue;
        peaks.push_back(peak.work * double(ROUNDS) / seconds(peak.run) * 1e-9);
        ratios.push_back(rates.back() / peaks.back());
    }
    std::printf("%s\n  {\"kernel\": \"%s\", \"bound_by\": \"%s\", \"per_ns\": %.4g, ", first ? "" : ",", kernel,
                peak.instructions, median(rates));
    if (peak.run)
        std::printf("\"peak_per_ns\": %.4g, \"ratio\": %.3f}", median(peaks), median(ratios));
    else
        std::printf("\"peak_per_ns\": null, \"ratio\": null}");
    first = false;
}

}  // namespace

int main(int count, char** arguments) {
    const int turns = count > 1 ? std::max(1, std::atoi(arguments[1])) : 9;
    const Isa& isa = isa_named("");
    uint64_t state = 1;
    std::vector<uint64_t> bits(UNITS * WORDS);
    for (uint64_t& word : bits) word = mix(state += GAMMA);
    std::vector<uint16_t> thresholds(UNITS * INPUTS);
    for (uint16_t& t : thresholds) t = uint16_t(mix(state += GAMMA) % 32769);
    Buffer<float> x(ROWS * INPUTS), out(UNITS * MAX_LANES), partial(UNITS * MAX_LANES);
    Buffer<int8_t> signs(ROWS * INPUTS), decided(UNITS * MAX_LANES);
    for (int64_t i = 0; i < ROWS * INPUTS; ++i) {
        x[i] = float(int64_t(mix(state += GAMMA)) >> 40);
        signs[i] = x[i] >= 0.0f ? 1 : -1;
    }
    Buffer<uint64_t> columns(WORDS * column_stride(UNITS));
    to_columns(bits.data(), UNITS, INPUTS, columns.get());
    Buffer<uint8_t> tables(TABLE_BYTES), scratch(fast_bytes(INPUTS, UNITS, MAX_LANES));
    std::vector<int16_t> limits(2 * UNITS, 0);
    std::vector<const float*> inputs(INPUTS);
    std::vector<const int8_t*> whole(INPUTS);
    const Bits columns_of{columns.get(), column_stride(UNITS), UNITS};
    const SumsOut<float> sums{out.get(), MAX_LANES, partial.get()};
    // Of all rows, as many at a time as there are lanes.
    const auto over_rows = [&](const std::function<void()>& sum) {
        for (int64_t row = 0; row < ROWS; row += MAX_LANES) {
            for (int64_t k = 0; k < INPUTS; ++k) {
                inputs[size_t(k)] = x.get() + row * INPUTS + k * MAX_LANES;
                whole[size_t(k)] = signs.get() + row * INPUTS + k * MAX_LANES;
            }
            sum();
        }
    };
    const double products = double(ROWS) * UNITS * INPUTS;

    std::printf("{\"isa\": \"%s\", \"rows\": %d, \"units\": %d, \"inputs\": %d, \"turns\": %d, \"kernels\": [",
                isa.name, int(ROWS), int(UNITS), int(INPUTS), turns);
    print_rate(turns, "exact sums", peak(isa.name, 0), products, [&] {
        over_rows([&] {
            isa.f4.sum(inputs.data(), INPUTS, MAX_LANES, columns_of, sums, tables.get());
        });
    });
    print_rate(turns, "fast sums", peak(isa.name, 1), products, [&] {
        over_rows([&] {
            isa.sum_fast(inputs.data(), INPUTS, MAX_LANES, columns_of, sums, scratch.get(), tables.get());
        });
    });
    print_rate(turns, "sums of signs", peak(isa.name, 2), products, [&] {
        over_rows([&] {
            isa.sum_sign(whole.data(), INPUTS, MAX_LANES, columns_of, sums, tables.get());
        });
    });
    print_rate(turns, "decisions about signs", peak(isa.name, 2), products, [&] {
        over_rows([&] {
            isa.decide_sign(whole.data(), INPUTS, MAX_LANES, columns_of,
                            {limits.data(), limits.data() + UNITS}, decided.get(), MAX_LANES,
                            reinterpret_cast<int16_t*>(partial.get()), tables.get());
        });
    });
    print_rate(turns, "draws (weights)", peak(isa.name, 3), double(UNITS) * INPUTS, [&] {
        isa.draw(bits.data(), thresholds.data(), state, INPUTS, 0, UNITS,
                  {columns.get(), 1, column_stride(UNITS)});
    });
    std::printf("\n]}\n");
}
