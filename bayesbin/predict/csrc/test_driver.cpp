// The kernels over awkward sizes against plain sums, every array ending at a page that may not be
// touched. Built with the sanitizers (CMakeLists.txt says how); prints what failed and exits with 1.
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "canonical.h"
#include "fused.h"
#include "single.h"

using namespace bayesbin;

namespace {

int failures = 0;

void check(bool holds, const char* what, const char* isa, int64_t m, int64_t n, int64_t k) {
    if (holds) return;
    ++failures;
    std::printf("%s: isa %s, M=%lld N=%lld K=%lld\n", what, isa, (long long)m, (long long)n, (long long)k);
}

// An array that ends at a forbidden page, and begins after one as nearly as whole pages allow.
template <class T>
class Guarded {
public:
    explicit Guarded(int64_t count) : size_(size_t(count) * sizeof(T)) {
        const size_t page = size_t(sysconf(_SC_PAGESIZE));
        inner_ = (size_ + page - 1) / page * page;
        total_ = inner_ + 2 * page;
        base_ = static_cast<char*>(
            mmap(nullptr, total_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED || (inner_ && mprotect(base_ + page, inner_, PROT_READ | PROT_WRITE)))
            std::abort();
        data_ = reinterpret_cast<T*>(base_ + page + inner_ - size_);
    }
    ~Guarded() { munmap(base_, total_); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    T* get() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

private:
    size_t size_, inner_, total_;
    char* base_;
    T* data_;
};

uint64_t state = 1;
uint64_t random_word() { return mix(state += GAMMA); }
float random_float() { return float(int64_t(random_word()) >> 40) / float(1 << 22); }

bool bit(const uint64_t* rows, int64_t n, int64_t k, int64_t inputs) {
    return rows[n * ceil_div(inputs, 64) + k / 64] >> (k % 64) & 1;
}

void test_draws(const Isa& isa, int64_t units, int64_t inputs) {
    const int64_t words = ceil_div(inputs, 64);
    Guarded<uint64_t> mode(units * words), out(units * words);
    Guarded<uint16_t> thresholds(units * inputs);
    for (int64_t i = 0; i < units * words; ++i) mode[i] = random_word();
    for (int64_t i = 0; i < units * inputs; ++i) thresholds[i] = uint16_t(random_word() % 32769);
    const uint64_t key = random_word();
    Watch watch;
    draw_rows(isa, mode.get(), thresholds.get(), key, units, inputs, out.get(), 2, watch);
    bool same = true;
    for (int64_t n = 0; n < units; ++n)
        for (int64_t k = 0; k < 64 * words; ++k) {
            const uint64_t word = mix(key + GAMMA * uint64_t(n * ceil_div(inputs, 4) + k / 4 + 1));
            const uint16_t u = uint16_t(word >> (16 * (k % 4)));
            const bool wanted = k < inputs && bit(mode.get(), n, k, inputs) != (u < thresholds[n * inputs + k]);
            same = same && (out[n * words + k / 64] >> (k % 64) & 1) == wanted;
        }
    check(same, "draws", isa.name, 0, units, inputs);
}

void test_linear(const Isa& isa, int64_t rows, int64_t units, int64_t inputs) {
    const int64_t words = ceil_div(inputs, 64);
    Guarded<uint64_t> bits(units * words), packed(rows * words);
    Guarded<float> x(rows * inputs), out(rows * units);
    Guarded<int32_t> whole(rows * units);
    for (int64_t i = 0; i < units * words; ++i) bits[i] = random_word();
    for (int64_t i = 0; i < rows * words; ++i) packed[i] = random_word();
    for (int64_t i = 0; i < rows * inputs; ++i)
        x[i] = std::copysign(random_float(), bit(packed.get(), i / inputs, i % inputs, inputs) ? 1.0f : -1.0f);
    const Geometry g{inputs, 1, 1, units, {}};
    Watch watch;
    for (const Kind kind : {Kind::REAL, Kind::FAST, Kind::SIGN}) {
        weighted_rows(isa, kind, g, x.get(), rows, bits.get(), out.get(), 3, watch);
        xnor_rows(isa, packed.get(), rows, bits.get(), units, inputs, whole.get(), 3, watch);
        double error = 0.0, size = 0.0;
        bool exact = true;
        for (int64_t m = 0; m < rows; ++m)
            for (int64_t n = 0; n < units; ++n) {
                double sum = 0.0, squares = 0.0;
                int64_t signs = 0;
                for (int64_t k = 0; k < inputs; ++k) {
                    const int w = bit(bits.get(), n, k, inputs) ? 1 : -1;
                    sum += w * double(x[m * inputs + k]);
                    squares += std::pow(x[m * inputs + k], 2);
                    signs += bit(packed.get(), m, k, inputs) ? w : -w;
                }
                const double wanted = kind == Kind::SIGN ? double(signs) : sum;
                error += std::pow(out[m * units + n] - wanted, 2);
                size += squares;  // the mean square of such a sum: one by itself may be near 0
                exact = exact && whole[m * units + n] == signs;
            }
        const double most = kind == Kind::REAL ? 1e-6 : kind == Kind::FAST ? 3e-4 : 0.0;
        check(std::sqrt(error) <= most * std::sqrt(size), "linear", isa.name, rows, units, inputs);
        check(exact, "xnor", isa.name, rows, units, inputs);
    }
}

// Padding, steps, images narrower than a vector: against plain sums, with one thread and with three.
void test_convolution(const Isa& isa, int64_t rows, const Geometry& g) {
    const Window& w = g.window;
    const int64_t inputs = g.inputs(), words = ceil_div(inputs, 64), in = g.features_in();
    const int64_t out_width = g.out_width(), pixels = g.out_height() * out_width;
    Guarded<uint64_t> bits(g.units * words);
    Guarded<float> x(rows * in), out(rows * g.units * pixels), again(rows * g.units * pixels);
    for (int64_t i = 0; i < g.units * words; ++i) bits[i] = random_word();
    for (int64_t i = 0; i < rows * in; ++i) x[i] = float(int64_t(random_word() % 65) - 32);
    Watch watch;
    for (const Kind kind : {Kind::REAL, Kind::SIGN}) {
        weighted_rows(isa, kind, g, x.get(), rows, bits.get(), out.get(), 1, watch);
        weighted_rows(isa, kind, g, x.get(), rows, bits.get(), again.get(), 3, watch);
        bool exact = true;  // sums of small whole numbers have no rounding
        for (int64_t i = 0; i < rows * g.units * pixels; ++i) {
            const int64_t m = i / (g.units * pixels), n = i / pixels % g.units, p = i % pixels;
            float sum = 0.0f;
            for (int64_t k = 0; k < inputs; ++k) {
                const int64_t c = k / (w.height * w.width), tap = k % (w.height * w.width);
                const int64_t y = p / out_width * w.step_y - w.pad_y + tap / w.width;
                const int64_t xx = p % out_width * w.step_x - w.pad_x + tap % w.width;
                if (y < 0 || y >= g.height || xx < 0 || xx >= g.width) continue;
                const float v = x[m * in + (c * g.height + y) * g.width + xx];
                const float value = kind == Kind::REAL ? v : v >= 0.0f ? 1.0f : -1.0f;
                sum += bit(bits.get(), n, k, inputs) ? value : -value;
            }
            exact = exact && out[i] == sum && again[i] == sum;
        }
        check(exact, "convolution", isa.name, rows, g.units, inputs);
    }
}

// Every kind of step over images, twice: with one thread and with three.
void test_network(const Isa& isa, int64_t rows) {
    const int64_t draws = 6, outputs = 3;
    Guarded<uint64_t> mode(7), keys(draws), bits(outputs);
    Guarded<uint16_t> thresholds(7 * 18);
    Guarded<float> a(7), b(7), bounds(2), x(rows * 2 * 6 * 5), each(draws * rows * outputs);
    for (int i = 0; i < 7; ++i) mode[i] = random_word(), a[i] = random_float(), b[i] = random_float();
    for (int i = 0; i < 7 * 18; ++i) thresholds[i] = uint16_t(random_word() % 32769);
    for (int i = 0; i < draws; ++i) keys[i] = random_word();
    for (int i = 0; i < outputs; ++i) bits[i] = random_word();
    for (int64_t i = 0; i < rows * 60; ++i) x[i] = random_float();
    bounds[0] = -1.0f, bounds[1] = 1.0f;
    const auto at = [](const auto& array) { return int64_t(reinterpret_cast<intptr_t>(array.get())); };
    const std::vector<std::vector<int64_t>> steps = {
        {0, 0, 7, 2, 3, 3, 1, 1, 1, 1, at(mode), at(thresholds), at(keys), 0, 0},
        {1, at(a), at(b), 0, 0},
        {2},
        {9}, {9}, {11},  // twice itself, with one copy left below
        {6, 0, 0, 0, 3, 2, 2, 2, 1, 1},
        {10}, {6, 0, 0, 0, 3, 2, 2, 2, 1, 1}, {11},
        {4},
        {7, 1, 0, 0, 2, 2, 1, 1, 1, 0},
        {3, at(bounds)},
        {8},
        {5},
        {0, 2, outputs, 56, 1, 1, 1, 1, 0, 0, 0, 0, 0, at(bits), 0},
    };
    Guarded<int64_t> program(int64_t(steps.size()) * PROGRAM_FIELDS);
    std::memset(program.get(), 0, steps.size() * PROGRAM_FIELDS * 8);
    for (size_t i = 0; i < steps.size(); ++i)
        std::memcpy(program.get() + i * PROGRAM_FIELDS, steps[i].data(), steps[i].size() * 8);
    const Shape input{2, 6, 5};
    const std::vector<Step> read = read_program(program.get(), int64_t(steps.size()), input);
    check(read.back().out.size() == outputs, "shape", isa.name, rows, 0, read[14].in.size());
    for (const Head head : {Head::CLASSES, Head::REGRESSION}) {
        Guarded<double> sums[2] = {Guarded<double>(rows * 10), Guarded<double>(rows * 10)};
        for (const int which : {0, 1}) {
            double* s = sums[which].get();
            const Sums parts{s, s + 3 * rows, s + 6 * rows, s + 7 * rows};
            Watch watch;
            fused_predict(isa, read, input, x.get(), rows, draws, head, parts, each.get(),
                          which ? 3 : 1, watch);
        }
        check(!std::memcmp(sums[0].get(), sums[1].get(), size_t(rows) * 80), "network", isa.name, rows, 0, 0);
    }
}

}  // namespace

int main() {
    for (const Isa* isa : isas()) {
        for (const int64_t inputs : {1, 3, 4, 5, 31, 32, 33, 63, 64, 65, 130, 777})
            for (const int64_t units : {1, 7, 33, 129}) {
                test_draws(*isa, units, inputs);
                for (const int64_t rows : {1, 8, 9, 17, 33}) test_linear(*isa, rows, units, inputs);
            }
        for (const int64_t rows : {1, 2, 3, 5, 9, 33})
            for (const Geometry& g : {Geometry{1, 9, 28, 3, {5, 5, 1, 1, 0, 0}},
                                      Geometry{2, 6, 23, 130, {3, 3, 1, 3, 1, 1}},
                                      Geometry{3, 5, 3, 4, {2, 2, 1, 1, 0, 1}},
                                      Geometry{7, 7, 13, 66, {3, 2, 2, 2, 2, 1}}})
                test_convolution(*isa, rows, g);
        for (const int64_t rows : {1, 2, 8, 31, 70}) test_network(*isa, rows);
        std::printf("isa %s done\n", isa->name);
    }
    std::printf("%d failures\n", failures);
    return failures != 0;
}
