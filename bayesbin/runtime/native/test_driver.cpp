// The kernels over awkward sizes against plain sums, every array ending at a page that may not be
// touched. Built with the sanitizers (CMakeLists.txt says how); prints what failed and exits with 1.
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "canonical.h"
#include "operations/layers.h"
#include "operations/plain.h"
#include "operations/pool.h"
#include "run.h"

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
    explicit Guarded(int64_t count) : count_(count), size_(size_t(count) * sizeof(T)) {
        const size_t page = size_t(sysconf(_SC_PAGESIZE));
        inner_ = (size_ + page - 1) / page * page;
        total_ = inner_ + 2 * page;
        base_ = static_cast<char*>(
            mmap(nullptr, total_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED || (inner_ && mprotect(base_ + page, inner_, PROT_READ | PROT_WRITE)))
            std::abort();
        data_ = reinterpret_cast<T*>(base_ + page + inner_ - size_);
    }
    Guarded(int64_t count, const std::function<T()>& make) : Guarded(count) {
        for (int64_t i = 0; i < count; ++i) data_[i] = make();
    }
    ~Guarded() { munmap(base_, total_); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    T* get() const { return data_; }
    int64_t count() const { return count_; }
    T& operator[](int64_t i) const { return data_[i]; }

private:
    int64_t count_;
    size_t size_, inner_, total_;
    char* base_;
    T* data_;
};

uint64_t state = 1;
uint64_t random_word() { return mix(state += GAMMA); }
float random_float() { return float(int64_t(random_word()) >> 40) / float(1 << 22); }
double random_double() { return random_float(); }
uint16_t random_threshold() { return uint16_t(random_word() % 32769); }

bool bit(const uint64_t* rows, int64_t n, int64_t k, int64_t inputs) {
    return rows[n * ceil_div(inputs, 64) + k / 64] >> (k % 64) & 1;
}

Numbers numbers_of(Type type, const void* data, int64_t size) {
    Numbers numbers;
    numbers.type = type;
    numbers.size = size;
    numbers.rows.data = static_cast<const char*>(data);
    numbers.rows.row_bytes = size * bytes_of(type);
    numbers.rows.count = 1;
    return numbers;
}
Numbers numbers_of(const Guarded<float>& a) { return numbers_of(Type::F4, a.get(), a.count()); }
Numbers numbers_of(const Guarded<double>& a) { return numbers_of(Type::F8, a.get(), a.count()); }

Site stored(const Guarded<uint64_t>& bits, int64_t units, int64_t inputs) {
    Site site;
    site.units = units;
    site.inputs = inputs;
    site.words.data = reinterpret_cast<const char*>(bits.get());
    site.words.count = 1;
    return site;
}

Site drawn(const Guarded<uint64_t>& mode, const Guarded<uint16_t>& thresholds, const Guarded<uint64_t>& keys,
           int64_t units, int64_t inputs) {
    Site site = stored(mode, units, inputs);
    site.thresholds.data = reinterpret_cast<const char*>(thresholds.get());
    site.thresholds.count = 1;
    site.keys = keys.get();
    return site;
}

// Run a program of one input and one output, both float32, in rows.
void run(const std::shared_ptr<Program>& program, const Isa& isa, const Guarded<float>& x, int64_t rows,
         const std::vector<int64_t>& draws, const Guarded<float>& out, int threads) {
    Runner runner(program);
    Watch watch;
    runner.run(isa, {{x.get(), 0}}, {}, rows, draws, {out.get()}, threads, watch);
}

std::shared_ptr<Program> begun(int64_t features, int64_t draws, int* x, bool signs = false) {
    auto program = std::make_shared<Program>(draws);
    *x = program->input({features, signs ? Type::SIGN : Type::F4}, Type::F4, true);
    return program;
}

void finish(Program& program, int slot) {
    program.output(slot, Type::F4);
    program.finish();
}

void test_draws(const Isa& isa, int64_t units, int64_t inputs) {
    const int64_t words = ceil_div(inputs, 64);
    Guarded<uint64_t> mode(units * words, random_word), out(units * words);
    Guarded<uint16_t> thresholds(units * inputs, random_threshold);
    const uint64_t key = random_word();
    isa.draw(mode.get(), thresholds.get(), key, inputs, 0, units, {out.get(), words, 1});
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

// A layer by itself, of every kind of sums.
void test_layer(const Isa& isa, int64_t rows, const Geometry& g) {
    const int64_t inputs = g.inputs(), words = ceil_div(inputs, 64), in = g.features_in();
    const int64_t pixels = g.pixels(), out_width = g.out_width(), outputs = g.features_out();
    const int64_t channels = g.channels / g.groups, units = g.units / g.groups;
    Guarded<uint64_t> bits(g.units * words, random_word);
    Guarded<float> x(rows * in, [] { return float(int64_t(random_word() % 65) - 32); });
    Guarded<float> w(g.units * inputs, [] { return float(int64_t(random_word() % 9) - 4); });
    Guarded<double> t(g.units, [] { return double(int64_t(random_word() % 33) - 16); });
    Guarded<double> d(g.units, [] { return random_word() % 2 ? 1.0 : -1.0; });
    Guarded<float> out(rows * outputs), again(rows * outputs);
    enum { REAL, DOUBLE, SIGN, DECIDE, DECIDE_SIGN, FAST, WEIGHTS };
    for (int kind = REAL; kind <= WEIGHTS; ++kind) {
        int slot;
        const bool signs = kind == SIGN || kind == DECIDE_SIGN;
        const auto program = begun(in, 1, &slot, signs);
        const Value value = program->value(slot);
        std::unique_ptr<Step> step;
        const Site site = stored(bits, g.units, inputs);
        const Decision decision{numbers_of(t), numbers_of(d)};
        switch (kind) {
            case REAL: step.reset(new SignLayer(value, g, site, Kind::REAL, Type::F4)); break;
            case DOUBLE: step.reset(new SignLayer(value, g, site, Kind::REAL, Type::F8)); break;
            case SIGN: step.reset(new SignLayer(value, g, site, Kind::SIGN, Type::F4)); break;
            case DECIDE: step.reset(new SignLayer(value, g, site, Kind::DECIDE, Type::F4, decision)); break;
            case DECIDE_SIGN:
                step.reset(new SignLayer(value, g, site, Kind::DECIDE_SIGN, Type::F4, decision));
                break;
            case FAST: step.reset(new SignLayer(value, g, site, Kind::FAST, Type::F4)); break;
            default: step.reset(new RealLayer(value, g, numbers_of(w), Numbers(), Type::F4));
        }
        finish(*program, program->add(std::move(step), {slot}));
        run(program, isa, x, rows, {0}, out, 1);
        run(program, isa, x, rows, {0}, again, 3);
        bool exact = true;  // sums of small whole numbers have no rounding
        double error = 0.0, size = 0.0;
        for (int64_t i = 0; i < rows * outputs; ++i) {
            const int64_t m = i / outputs, place = i % outputs;
            const int64_t position = g.positions > 1 ? place / g.units : 0;
            const int64_t n = g.positions > 1 ? place % g.units : place / pixels;
            const int64_t p = g.positions > 1 ? 0 : place % pixels;
            float sum = 0.0f;
            for (int64_t k = 0; k < inputs; ++k) {
                const int64_t c = k / (g.y.window * g.x.window), tap = k % (g.y.window * g.x.window);
                const int64_t y = p / out_width * g.y.step - g.y.low + tap / g.x.window * g.y.dilation;
                const int64_t xx = p % out_width * g.x.step - g.x.low + tap % g.x.window * g.x.dilation;
                if (y < 0 || y >= g.y.size || xx < 0 || xx >= g.x.size) continue;
                const int64_t channel = n / units * channels + c;
                const float v =
                    x[m * in + position * g.channels + (channel * g.y.size + y) * g.x.size + xx];
                const float value = !signs ? v : v >= 0.0f ? 1.0f : -1.0f;
                const float weight = kind == WEIGHTS ? w[n * inputs + k] : bit(bits.get(), n, k, inputs) ? 1.0f : -1.0f;
                sum += weight * value;
            }
            if (kind == DECIDE || kind == DECIDE_SIGN)
                sum = (d[n] < 0.0 ? sum <= t[n] : sum >= t[n]) ? 1.0f : -1.0f;
            exact = exact && out[i] == sum && again[i] == out[i];
            error += std::pow(out[i] - sum, 2);
            size += std::pow(sum, 2);
        }
        if (kind == FAST && g.linear()) exact = std::sqrt(error) <= 1e-3 * std::sqrt(size) + 0.1;
        check(exact, "layer", isa.name, rows, g.units, inputs * 10 + kind);
    }
}

// Every kind of step over images, twice: with one thread and with three.
void test_network(const Isa& isa, int64_t rows) {
    const int64_t draws = 6, outputs = 3;
    Guarded<uint64_t> mode(7, random_word), keys(draws, random_word), bits(outputs, random_word);
    Guarded<uint16_t> thresholds(7 * 18, random_threshold);
    Guarded<float> a(7, random_float), b(7, random_float), more(7 * 30, random_float);
    Guarded<double> wide(7, random_double), roots(7, [] { return 0.5 + std::abs(random_double()); });
    Guarded<float> x(rows * 2 * 6 * 5, random_float);
    int slot;
    const auto program = begun(60, draws, &slot);
    const auto add = [&](Step* step, std::vector<int> inputs) {
        return program->add(std::unique_ptr<Step>(step), std::move(inputs));
    };
    const auto value = [&](int s) { return program->value(s); };
    const auto per_channel = [&](PerChannel op, Numbers first, Numbers second = {}) {
        slot = add(new ChannelStep(value(slot), op, {1, 7, value(slot).size / 7}, std::move(first),
                                   std::move(second), Type::F4), {slot});
    };
    Geometry g;
    g.channels = 2, g.units = 7;
    g.y = {6, 3, 1, 1, 1, 1}, g.x = {5, 3, 1, 1, 1, 1};
    slot = add(new SignLayer(value(slot), g, drawn(mode, thresholds, keys, 7, 18), Kind::REAL, Type::F4), {slot});
    per_channel(PerChannel::BIAS, numbers_of(a));
    per_channel(PerChannel::AFFINE, numbers_of(a), numbers_of(b));
    per_channel(PerChannel::PRELU, numbers_of(b));
    slot = add(new NormStep(value(slot), {1, 7, 30}, numbers_of(wide), numbers_of(roots), numbers_of(wide),
                            Numbers(), Type::F4), {slot});
    const int before = slot;
    for (const Unary op : {Unary::RELU, Unary::CLAMP, Unary::TANH, Unary::LEAKY_RELU, Unary::ABS, Unary::NEG})
        slot = add(new UnaryStep(value(slot), op, -0.5, 0.7, Type::F4), {slot});
    for (const Binary op : {Binary::ADD, Binary::SUB, Binary::MUL, Binary::MAXIMUM, Binary::MINIMUM}) {
        slot = add(new BinaryStep(value(slot), value(before), op, Type::F4), {slot, before});
        slot = add(new NumbersStep(value(slot), numbers_of(more), op, op != Binary::SUB, Type::F4), {slot});
    }
    std::vector<int64_t> places;
    for (int64_t k = 0; k < 210; ++k) places.push_back(k % 5 == 4 ? -1 : 419 - 2 * k);
    slot = add(new MoveStep({value(slot), value(before)}, places.data(), 210, 0.25, Type::F4), {slot, before});
    const Axis y{6, 3, 2, 1, 1, 1}, xx{5, 2, 2, 1, 1, 1};
    const int pooled = add(new PoolStep(value(slot), true, 7, y, xx, 3, 3, true, 0, Type::F4), {slot});
    const int mean = add(new PoolStep(value(slot), false, 7, y, xx, 3, 3, false, 0, Type::F8), {slot});
    const int signs = add(new SignStep(value(slot)), {slot});
    const int least = add(new PoolSignsStep(value(signs), 7, y, xx, 3, 3, numbers_of(wide)), {signs});
    const int decided =
        add(new SignStep(value(pooled), {1, 7, 9}, numbers_of(wide), numbers_of(wide)), {pooled});
    slot = add(new BinaryStep(value(least), value(decided), Binary::MUL, Type::F4), {least, decided});
    const int sums = add(new SumStep(value(mean), 9, true, Type::F4), {mean});
    places.clear();
    for (int64_t k = 0; k < 70; ++k) places.push_back(k);
    slot = add(new MoveStep({value(slot), value(sums)}, places.data(), 56, 0.0, Type::F4), {slot, sums});
    Geometry last;
    last.channels = 56, last.units = outputs;
    const int end = add(new SignLayer(value(slot), last, stored(bits, outputs, 56), Kind::SIGN, Type::F4), {slot});
    finish(*program, end);
    Guarded<float> out(draws * rows * outputs), again(draws * rows * outputs);
    run(program, isa, x, rows, {0, 1, 2, 3, 4, 5}, out, 1);
    run(program, isa, x, rows, {0, 1, 2, 3, 4, 5}, again, 3);
    check(!std::memcmp(out.get(), again.get(), size_t(draws * rows * outputs) * 4), "network", isa.name, rows, 0, 0);
}

Geometry linear(int64_t inputs, int64_t units, int64_t positions = 1) {
    Geometry g;
    g.channels = inputs, g.units = units, g.positions = positions;
    return g;
}

Geometry images(int64_t channels, int64_t units, int64_t groups, const Axis& y, const Axis& x) {
    Geometry g;
    g.channels = channels, g.units = units, g.groups = groups, g.y = y, g.x = x;
    return g;
}

}  // namespace

int main() {
    for (const Isa* isa : isas()) {
        for (const int64_t inputs : {1, 3, 4, 5, 31, 32, 33, 63, 64, 65, 130, 777})
            for (const int64_t units : {1, 7, 33, 129}) {
                test_draws(*isa, units, inputs);
                for (const int64_t rows : {1, 8, 9, 17, 33}) test_layer(*isa, rows, linear(inputs, units));
            }
        for (const int64_t rows : {1, 2, 3, 5, 9, 33})
            for (const Geometry& g :
                 {images(1, 3, 1, {9, 5, 1, 0, 0, 1}, {28, 5, 1, 0, 0, 1}),
                  images(2, 130, 1, {6, 3, 1, 1, 1, 1}, {23, 3, 3, 1, 1, 1}),
                  images(3, 6, 3, {5, 2, 1, 0, 2, 1}, {3, 2, 1, 1, 0, 1}),
                  images(7, 66, 1, {7, 3, 2, 2, 1, 1}, {13, 2, 2, 1, 1, 3}),
                  images(4, 6, 2, {11, 3, 1, 1, 0, 4}, {1, 1, 1, 0, 0, 1}), linear(9, 40, 5)})
                test_layer(*isa, rows, g);
        for (const int64_t rows : {1, 2, 8, 31, 70}) test_network(*isa, rows);
        std::printf("isa %s done\n", isa->name);
    }
    std::printf("%d failures\n", failures);
    return failures != 0;
}
