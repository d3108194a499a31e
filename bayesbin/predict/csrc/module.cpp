// The extension module bayesbin.predict._kernels. Arrays come as addresses: bayesbin/predict/kernels.py
// has checked their types, shapes and layout, and is the only caller.
//
// A network comes as a program, an int64 array (steps, 16) described in program.h, beside the shape
// (channels, height, width) of one input; a vector of n inputs is (n, 1, 1).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "fused.h"
#include "single.h"

namespace nb = nanobind;
using namespace bayesbin;

namespace {

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// Run without the GIL, taking it now and then to see whether a signal (Ctrl-C) has arrived.
template <class Call>
void interruptible(const Call& call) {
    bool interrupted = false;
    Watch watch([&] {
        const nb::gil_scoped_acquire gil;
        interrupted = PyErr_CheckSignals() != 0;
        return interrupted;
    });
    {
        const nb::gil_scoped_release release;
        call(watch);
    }
    if (interrupted) throw nb::python_error();
}

typedef std::tuple<int64_t, int64_t, int64_t> Triple;
typedef std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t> Six;

Geometry geometry_of(const Triple& image, int64_t units, const Six& w) {
    const auto [channels, height, width] = image;
    return {channels, height, width, units,
            {std::get<0>(w), std::get<1>(w), std::get<2>(w), std::get<3>(w), std::get<4>(w),
             std::get<5>(w)}};
}

void draw_bits(const std::string& isa, uintptr_t mode, uintptr_t thresholds, uint64_t key, int64_t units,
               int64_t inputs, uintptr_t out, int threads) {
    const Isa& t = isa_named(isa);
    interruptible([&](Watch& watch) {
        draw_rows(t, at<uint64_t>(mode), at<uint16_t>(thresholds), key, units, inputs, at<uint64_t>(out),
                  threads, watch);
    });
}

void weighted(const std::string& isa, int64_t kind, const Triple& image, int64_t units,
              const Six& window, uintptr_t x, int64_t rows, uintptr_t bits, uintptr_t out, int threads) {
    const Isa& t = isa_named(isa);
    const Geometry g = geometry_of(image, units, window);
    interruptible([&](Watch& watch) {
        weighted_rows(t, Kind(kind), g, at<float>(x), rows, at<uint64_t>(bits), at<float>(out), threads,
                      watch);
    });
}

void weighted_signs(const std::string& isa, const Triple& image, int64_t units, const Six& window,
                    uintptr_t x, int64_t rows, uintptr_t bits, uintptr_t out, int threads) {
    const Isa& t = isa_named(isa);
    const Geometry g = geometry_of(image, units, window);
    interruptible([&](Watch& watch) {
        weighted_bits(t, g, at<uint64_t>(x), rows, at<uint64_t>(bits), at<int32_t>(out), threads, watch);
    });
}

void xnor(const std::string& isa, uintptr_t x, int64_t rows, uintptr_t bits, int64_t units,
          int64_t inputs, uintptr_t out, int threads) {
    const Isa& t = isa_named(isa);
    interruptible([&](Watch& watch) {
        xnor_rows(t, at<uint64_t>(x), rows, at<uint64_t>(bits), units, inputs, at<int32_t>(out), threads,
                  watch);
    });
}

std::vector<Step> steps_of(uintptr_t program, int64_t count, const Triple& image) {
    const auto [channels, height, width] = image;
    return read_program(at<int64_t>(program), count, {channels, height, width});
}

void fused(const std::string& isa, uintptr_t program, int64_t count, const Triple& image, uintptr_t x,
           int64_t rows, int64_t draws, int64_t head, uintptr_t first, uintptr_t second,
           uintptr_t entropies, uintptr_t tiny, uintptr_t each, int threads) {
    const Isa& t = isa_named(isa);
    const auto [channels, height, width] = image;
    const std::vector<Step> steps = steps_of(program, count, image);
    const Sums sums{at<double>(first), at<double>(second), at<double>(entropies), at<double>(tiny)};
    interruptible([&](Watch& watch) {
        fused_predict(t, steps, {channels, height, width}, at<float>(x), rows, draws, Head(head), sums,
                      at<float>(each), threads, watch);
    });
}

}  // namespace

NB_MODULE(_kernels, m) {
    m.doc() = "Fused kernels over binary weights, in C++; called through bayesbin.predict.kernels.";
    m.def("isa", [] { return std::string(isa_named("").name); },
          "The isa in use: the best, or the one that BAYESBIN_KERNEL names.");
    m.def("isas", [] {
        std::vector<std::string> names;
        for (const Isa* isa : isas()) names.emplace_back(isa->name);
        return names;
    }, "The isas that this machine can run, best last.");
    m.def("draw_bits", &draw_bits);
    m.def("weighted", &weighted);
    m.def("weighted_signs", &weighted_signs);
    m.def("xnor", &xnor);
    m.def("fused", &fused);
}
