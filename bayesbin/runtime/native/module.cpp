// The extension module bayesbin.runtime._kernels: programs of steps, built and run. Arrays come as whatever
// has Python's buffer protocol, contiguous in C order; each is checked here for its type and shape, and
// kept alive by the program that uses it. bayesbin/runtime/native_backend.py is the caller.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>

#include "operations/batch.h"
#include "operations/layers.h"
#include "operations/plain.h"
#include "operations/pool.h"
#include "run.h"

namespace nb = nanobind;
using namespace bayesbin;

namespace {

// A view of an array, of one of the types that occur here.
class View {
public:
    View(nb::handle array, const std::string& name, bool writable = false) : name_(name) {
        const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(array.ptr(), &buffer_, flags)) throw nb::python_error();
    }
    ~View() {
        const nb::gil_scoped_acquire gil;
        PyBuffer_Release(&buffer_);
    }
    View(const View&) = delete;
    View& operator=(const View&) = delete;

    int axes() const { return buffer_.ndim; }
    int64_t size(int axis) const { return buffer_.shape[axis]; }
    int64_t count() const { return buffer_.itemsize ? buffer_.len / buffer_.itemsize : 0; }
    void* data() const { return buffer_.buf; }

    // Refuse an array of another type, or of other sizes (-1: any).
    void check(const char* types, size_t bytes, const std::vector<int64_t>& shape) const {
        check_type(types, bytes);
        bool fits = size_t(axes()) == shape.size();
        for (size_t axis = 0; fits && axis < shape.size(); ++axis)
            fits = shape[axis] < 0 || shape[axis] == size(int(axis));
        if (fits) return;
        std::string wanted, found;
        for (const int64_t each : shape)
            wanted += (wanted.empty() ? "" : ", ") + (each < 0 ? "any" : std::to_string(each));
        for (int axis = 0; axis < axes(); ++axis)
            found += (axis ? ", " : "") + std::to_string(size(axis));
        throw nb::value_error((name_ + " has the shape (" + wanted + "); got (" + found + ").").c_str());
    }
    void check_type(const char* types, size_t bytes) const {
        const char* format = buffer_.format ? buffer_.format : "B";
        if (*format == '<' || *format == '=' || *format == '@') ++format;
        if (*format && std::string(types).find(*format) != std::string::npos &&
            size_t(buffer_.itemsize) == bytes && !format[1])
            return;
        throw nb::type_error(
            (name_ + " is an array of another type than is needed: one of '" + std::string(types) +
             "'; got '" + format + "'. Convert it first.").c_str());
    }
    // float32 or float64.
    Type number_type() const {
        const char* format = buffer_.format ? buffer_.format : "B";
        if (*format == '<' || *format == '=' || *format == '@') ++format;
        if (*format == 'f' && buffer_.itemsize == 4) return Type::F4;
        check_type("d", 8);
        return Type::F8;
    }

private:
    std::string name_;
    Py_buffer buffer_;
};

typedef std::shared_ptr<View> Shared;
const char *const WORDS = "QLNK", *const WHOLE = "qln", *const HALVES = "H";

Type type_named(const std::string& name) {
    if (name == "f4") return Type::F4;
    if (name == "f8") return Type::F8;
    throw nb::value_error("A type is f4 or f8.");
}

// Which row each draw uses; all of them are there.
void add_rows(Rows& into, nb::handle rows, int64_t draws) {
    if (rows.is_none()) return;
    const Shared view = std::make_shared<View>(rows, "rows");
    view->check(WHOLE, 8, {draws});
    const auto* found = static_cast<const int64_t*>(view->data());
    for (int64_t i = 0; i < draws; ++i)
        if (found[i] < 0 || found[i] >= into.count) throw nb::value_error("A draw uses a row that is not there.");
    into.rows = found;
    into.owners.push_back(view);
}

// One axis of an image and the window over it, as a tuple (size, window, step, low, high, dilation).
typedef std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t> Six;

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

Axis axis_of(int64_t size, int64_t window, int64_t step, int64_t low, int64_t high, int64_t dilation) {
    return {size, window, step, low, high, dilation};
}

// What Python builds and runs.
class PythonProgram {
public:
    explicit PythonProgram(int64_t draws) : program_(std::make_shared<Program>(draws)), runner_(program_) {}

    int input(int64_t size, const std::string& array, bool signs, bool shared) {
        const Type type = type_named(array);
        return program_->input({size, signs ? Type::SIGN : type}, type, shared);
    }

    Numbers numbers(nb::handle array, nb::handle rows) const {
        const Shared view = std::make_shared<View>(array, "numbers");
        Numbers found;
        found.type = view->number_type();
        if (view->axes() < 1 || view->size(0) < 1) throw nb::value_error("numbers has at least one row.");
        found.rows.count = view->size(0);
        found.size = view->count() / view->size(0);
        found.rows.data = static_cast<const char*>(view->data());
        found.rows.row_bytes = found.size * bytes_of(found.type);
        found.rows.owners.push_back(view);
        add_rows(found.rows, rows, program_->draws());
        return found;
    }

    Numbers argument(const std::string& type, int64_t size) { return program_->argument(type_named(type), size); }

    Site drawn(nb::handle mode, nb::handle thresholds, nb::handle keys, nb::handle rows) const {
        const Shared t = std::make_shared<View>(thresholds, "thresholds");
        t->check(HALVES, 2, {-1, -1, -1});
        Site site = stored(mode, t->size(2), rows);
        t->check(HALVES, 2, {site.words.count, site.units, site.inputs});
        const auto* all = static_cast<const uint16_t*>(t->data());
        for (int64_t i = 0; i < t->count(); ++i)
            if (all[i] > 32768) throw nb::value_error("thresholds are at most 32768.");
        site.thresholds = site.words;
        site.thresholds.data = static_cast<const char*>(t->data());
        site.thresholds.row_bytes = site.units * site.inputs * 2;
        site.thresholds.owners = {t};
        const Shared k = std::make_shared<View>(keys, "keys");
        k->check(WORDS, 8, {program_->draws()});
        site.keys = static_cast<const uint64_t*>(k->data());
        site.keys_owner = k;
        return site;
    }

    Site stored(nb::handle bits, int64_t inputs, nb::handle rows) const {
        const Shared view = std::make_shared<View>(bits, "bits");
        view->check(WORDS, 8, {-1, -1, ceil_div(inputs, 64)});
        if (inputs < 1 || view->size(0) < 1 || view->size(1) < 1) throw nb::value_error("bits are of at least one weight.");
        Site site;
        site.units = view->size(1);
        site.inputs = inputs;
        site.words.data = static_cast<const char*>(view->data());
        site.words.count = view->size(0);
        site.words.row_bytes = view->size(1) * view->size(2) * 8;
        site.words.owners.push_back(view);
        add_rows(site.words, rows, program_->draws());
        return site;
    }

    int sign_layer(int x, const Geometry& geometry, const Site& site, const std::string& kind,
                   const std::string& type, const std::optional<Numbers>& t, const std::optional<Numbers>& d,
                   int marks) {
        if (marks < 0 || marks > 2) throw nb::value_error("marks is 0, 1 or 2.");
        const std::vector<std::string> kinds = {"real", "fast", "sign", "decide", "decide_sign"};
        const auto found = std::find(kinds.begin(), kinds.end(), kind);
        if (found == kinds.end())
            throw nb::value_error(("A kind of sums is one of real, fast, sign, decide, decide_sign; got '" + kind + "'.").c_str());
        return add({x}, new SignLayer(program_->value(x), geometry, site, Kind(found - kinds.begin()),
                                      type_named(type),
                                      {t.value_or(Numbers()), d.value_or(Numbers()), Marks(marks)}));
    }

    int real_layer(int x, const Geometry& geometry, const Numbers& weights,
                   const std::optional<Numbers>& bias, const std::string& type) {
        return add({x}, new RealLayer(program_->value(x), geometry, weights, bias.value_or(Numbers()),
                                      type_named(type)));
    }

    int unary(int x, const std::string& op, double a, double b, const std::string& type) {
        return add({x}, new UnaryStep(program_->value(x), named<Unary>(UNARY, op), a, b, type_named(type)));
    }

    int binary(int a, int b, const std::string& op, const std::string& type) {
        return add({a, b}, new BinaryStep(program_->value(a), program_->value(b), named<Binary>(BINARY, op),
                                          type_named(type)));
    }

    int with_numbers(int x, const Numbers& numbers, const std::string& op, bool second,
                     const std::string& type) {
        return add({x}, new NumbersStep(program_->value(x), numbers, named<Binary>(BINARY, op), second,
                                        type_named(type)));
    }

    int per_channel(int x, const std::string& op, int64_t outer, int64_t channels, int64_t inner,
                    const Numbers& first, const std::optional<Numbers>& second, const std::string& type) {
        return add({x}, new ChannelStep(program_->value(x), named<PerChannel>(PER_CHANNEL, op),
                                        {outer, channels, inner}, first, second.value_or(Numbers()),
                                        type_named(type)));
    }

    int norm(int x, int64_t outer, int64_t channels, int64_t inner, const Numbers& mean, const Numbers& root,
             const std::optional<Numbers>& weight, const std::optional<Numbers>& bias, const std::string& type) {
        return add({x}, new NormStep(program_->value(x), {outer, channels, inner}, mean, root,
                                     weight.value_or(Numbers()), bias.value_or(Numbers()), type_named(type)));
    }

    int sum(int x, int64_t count, bool mean, const std::string& type) {
        return add({x}, new SumStep(program_->value(x), count, mean, type_named(type)));
    }

    int sign(int x) { return add({x}, new SignStep(program_->value(x))); }

    int threshold(int x, int64_t outer, int64_t channels, int64_t inner, const Numbers& t, const Numbers& d) {
        return add({x}, new SignStep(program_->value(x), {outer, channels, inner}, t, d));
    }

    int pool(int x, bool maximum, int64_t channels, const Axis& y, const Axis& x_axis, int64_t out_height,
             int64_t out_width, bool count_padding, int64_t divisor, const std::string& type) {
        return add({x}, new PoolStep(program_->value(x), maximum, channels, y, x_axis, out_height, out_width,
                                     count_padding, divisor, type_named(type)));
    }

    int pool_signs(int x, int64_t channels, const Axis& y, const Axis& x_axis, int64_t out_height,
                   int64_t out_width, const Numbers& d) {
        return add({x}, new PoolSignsStep(program_->value(x), channels, y, x_axis, out_height, out_width, d));
    }

    // Signs stay signs where all sources are.
    int move(const std::vector<int>& sources, nb::handle places, double fill, const std::string& type) {
        const View view(places, "places");
        view.check(WHOLE, 8, {-1});
        std::vector<Value> values;
        bool signs = !sources.empty();
        for (const int source : sources) {
            values.push_back(program_->value(source));
            signs = signs && values.back().type == Type::SIGN;
        }
        const auto* from = static_cast<const int64_t*>(view.data());
        signs = signs && std::all_of(from, from + view.count(), [](int64_t at) { return at >= 0; });
        return add(sources, new MoveStep(values, from, view.count(), fill,
                                         signs ? Type::SIGN : type_named(type)));
    }

    void output(int slot, const std::string& array) { program_->output(slot, type_named(array)); }
    void finish() { program_->finish(); }

    // Each input is (draws or 1, rows, size), each argument (draws or 1, size); outputs (draws, rows, size).
    void run(const std::string& isa, const std::vector<nb::object>& inputs,
             const std::vector<nb::object>& arguments, const std::vector<int64_t>& draws,
             const std::vector<nb::object>& outputs, int threads) {
        const Program& program = *program_;
        if (!program.finished()) throw nb::value_error("The program is not finished.");
        if (inputs.size() != program.inputs().size() || outputs.size() != program.outputs().size() ||
            arguments.size() != program.arguments().size())
            throw nb::value_error("The program has another number of inputs, arguments or outputs.");
        for (const int64_t draw : draws)
            if (draw < 0 || draw >= program.draws()) throw nb::value_error("There is no such draw.");
        const int64_t many = int64_t(draws.size());
        std::vector<std::unique_ptr<View>> views;
        std::vector<Given> from;
        std::vector<Argument> handed;
        std::vector<void*> to;
        int64_t rows = -1;
        for (size_t i = 0; i < inputs.size(); ++i) {
            const Program::Port& port = program.inputs()[i];
            const View& view = viewed(views, inputs[i], "x", port.array, {-1, rows, program.value(port.slot).size});
            rows = view.size(1);
            from.push_back({view.data(), step_of(view, many, program.shared()[i])});
        }
        for (size_t i = 0; i < arguments.size(); ++i) {
            const Numbers& numbers = program.arguments()[i];
            const View& view = viewed(views, arguments[i], "an argument", numbers.type, {-1, numbers.size});
            handed.push_back({view.data(), step_of(view, many, false)});
        }
        for (size_t i = 0; i < outputs.size(); ++i) {
            const Program::Port& port = program.outputs()[i];
            const View& view = viewed(views, outputs[i], "out", port.array,
                                      {many, std::max<int64_t>(rows, 0), program.value(port.slot).size}, true);
            to.push_back(view.data());
        }
        const Isa& t = isa_named(isa);
        if (rows > 0)
            interruptible([&](Watch& watch) {
                runner_.run(t, from, handed, rows, draws, to, threads, watch);
            });
    }

private:
    static const std::vector<std::string> UNARY, BINARY, PER_CHANNEL;

    template <class Op>
    static Op named(const std::vector<std::string>& names, const std::string& name) {
        const auto found = std::find(names.begin(), names.end(), name);
        if (found == names.end()) throw nb::value_error(("There is no step '" + name + "' of this kind.").c_str());
        return Op(found - names.begin());
    }

    int add(const std::vector<int>& inputs, Step* step) {
        return program_->add(std::unique_ptr<Step>(step), inputs);
    }

    static const View& viewed(std::vector<std::unique_ptr<View>>& views, nb::handle array, const char* name,
                              Type type, const std::vector<int64_t>& shape, bool writable = false) {
        views.push_back(std::make_unique<View>(array, name, writable));
        views.back()->check(type == Type::F4 ? "f" : "d", size_t(bytes_of(type)), shape);
        return *views.back();
    }

    static int64_t step_of(const View& view, int64_t draws, bool shared) {
        if (view.size(0) != 1 && (shared || view.size(0) != draws))
            throw nb::value_error("An array is for one draw, or for each draw of the call.");
        return view.size(0) == 1 ? 0 : view.count() / view.size(0);
    }

    std::shared_ptr<Program> program_;
    Runner runner_;
};

const std::vector<std::string> PythonProgram::UNARY = {"relu", "clamp", "tanh", "leaky_relu", "abs", "neg"};
const std::vector<std::string> PythonProgram::BINARY = {"add", "sub", "mul", "maximum", "minimum"};
const std::vector<std::string> PythonProgram::PER_CHANNEL = {"affine", "bias", "prelu"};

// The packed signs of one draw, those of the mode flipped where a random number is less: rows of words.
void draw_bits(const std::string& isa, nb::handle mode, nb::handle thresholds, uint64_t key, nb::handle out,
               int threads) {
    const Isa& t = isa_named(isa);
    const View flips(thresholds, "thresholds"), from(mode, "mode"), to(out, "out", true);
    flips.check(HALVES, 2, {-1, -1});
    const int64_t units = flips.size(0), inputs = flips.size(1), words = ceil_div(inputs, 64);
    from.check(WORDS, 8, {units, words});
    to.check(WORDS, 8, {units, words});
    if (units == 0 || inputs == 0) return;
    constexpr int64_t PIECE_OF_WORK = 1 << 22;  // weights between two looks at the watch
    const int64_t piece = std::max<int64_t>(1, std::min(PIECE_OF_WORK / inputs, ceil_div(units, threads)));
    interruptible([&](Watch& watch) {
        run_units(ceil_div(units, piece), threads, watch, [&](int64_t unit, int) {
            t.draw(static_cast<const uint64_t*>(from.data()), static_cast<const uint16_t*>(flips.data()), key,
                   inputs, unit * piece, std::min(units, (unit + 1) * piece),
                   {static_cast<uint64_t*>(to.data()), words, 1});
        });
    });
}

// Values (draws, outer, channels, inner), normalised where they are; see batch.h.
void normalised_array(const std::string& isa, nb::handle x, nb::handle weight, nb::handle bias, double eps,
                        nb::handle mean, nb::handle squares, int threads) {
    const Isa& t = isa_named(isa);
    const View values(x, "x", true), to(mean, "mean", true), more(squares, "squares", true);
    const Type type = values.number_type();
    values.check(type == Type::F4 ? "f" : "d", size_t(bytes_of(type)), {-1, -1, -1, -1});
    const int64_t draws = values.size(0);
    const Channels c{values.size(1), values.size(2), values.size(3)};
    std::vector<std::unique_ptr<View>> views;
    const auto numbers = [&](nb::handle array, const char* name) -> const double* {
        if (array.is_none()) return nullptr;
        views.push_back(std::make_unique<View>(array, name));
        views.back()->check("d", 8, {draws, c.channels});
        return static_cast<const double*>(views.back()->data());
    };
    to.check("d", 8, {draws, c.channels});
    more.check("d", 8, {draws, c.channels});
    if (values.count() == 0) throw nb::value_error("x has at least one number.");
    const double *w = numbers(weight, "weight"), *b = numbers(bias, "bias");
    interruptible([&](Watch& watch) {
        with_type(type, [&](auto zero) {
            normalise_by_batch(t, static_cast<decltype(zero)*>(values.data()), draws, c, w, b, eps,
                                         static_cast<double*>(to.data()),
                                         static_cast<double*>(more.data()), threads, watch);
        });
    });
}

}  // namespace

NB_MODULE(_kernels, m) {
    m.doc() = "Programs of steps over lanes, in C++; called through bayesbin.runtime.native_backend.";
    m.def("isa", [] { return std::string(isa_named("").name); },
          "The isa in use: the best, or the one that BAYESBIN_KERNEL names.");
    m.def("isas", [] {
        std::vector<std::string> names;
        for (const Isa* isa : isas()) names.emplace_back(isa->name);
        return names;
    }, "The isas that this machine can run, best last.");
    m.def("draw_bits", &draw_bits);
    m.def("normalise_by_batch", &normalised_array, nb::arg("isa"), nb::arg("x"), nb::arg("weight").none(),
          nb::arg("bias").none(), nb::arg("eps"), nb::arg("mean"), nb::arg("squares"), nb::arg("threads"));

    nb::class_<Axis>(m, "Axis", "A window along one axis of an image.")
        .def("__init__",
             [](Axis* to, int64_t size, int64_t window, int64_t step, int64_t low, int64_t high,
                int64_t dilation) { new (to) Axis(axis_of(size, window, step, low, high, dilation)); },
             nb::arg("size") = 1, nb::arg("window") = 1, nb::arg("step") = 1, nb::arg("low") = 0,
             nb::arg("high") = 0, nb::arg("dilation") = 1);
    nb::class_<Geometry>(m, "Geometry", "Sizes of a layer.")
        .def("__init__",
             [](Geometry* to, int64_t channels, int64_t units, int64_t groups, int64_t positions,
                const Axis& y, const Axis& x) {
                 new (to) Geometry{channels, units, groups, positions, y, x};
             },
             nb::arg("channels"), nb::arg("units"), nb::arg("groups") = 1, nb::arg("positions") = 1,
             nb::arg("y") = Axis(), nb::arg("x") = Axis());
    nb::class_<Numbers>(m, "Numbers", "Numbers that all rows of the batch share.")
        .def_ro("size", &Numbers::size);
    nb::class_<Site>(m, "Site", "Signs of weights, drawn or stored.")
        .def_ro("units", &Site::units)
        .def_ro("inputs", &Site::inputs);
    nb::class_<PythonProgram>(m, "Program", "Steps over values in slots.")
        .def(nb::init<int64_t>(), nb::arg("draws"))
        .def("input", &PythonProgram::input)
        .def("numbers", &PythonProgram::numbers, nb::arg("array"), nb::arg("rows").none() = nb::none())
        .def("argument", &PythonProgram::argument)
        .def("drawn", &PythonProgram::drawn, nb::arg("mode"), nb::arg("thresholds"), nb::arg("keys"),
             nb::arg("rows").none() = nb::none())
        .def("stored", &PythonProgram::stored, nb::arg("bits"), nb::arg("inputs"),
             nb::arg("rows").none() = nb::none())
        .def("sign_layer", &PythonProgram::sign_layer, nb::arg("x"), nb::arg("geometry"), nb::arg("site"),
             nb::arg("kind"), nb::arg("type"), nb::arg("t").none() = nb::none(),
             nb::arg("d").none() = nb::none(), nb::arg("marks") = 0)
        .def("real_layer", &PythonProgram::real_layer, nb::arg("x"), nb::arg("geometry"),
             nb::arg("weights"), nb::arg("bias").none(), nb::arg("type"))
        .def("unary", &PythonProgram::unary)
        .def("binary", &PythonProgram::binary)
        .def("with_numbers", &PythonProgram::with_numbers)
        .def("per_channel", &PythonProgram::per_channel, nb::arg("x"), nb::arg("op"), nb::arg("outer"),
             nb::arg("channels"), nb::arg("inner"), nb::arg("first"), nb::arg("second").none(),
             nb::arg("type"))
        .def("norm", &PythonProgram::norm, nb::arg("x"), nb::arg("outer"), nb::arg("channels"),
             nb::arg("inner"), nb::arg("mean"), nb::arg("root"), nb::arg("weight").none(),
             nb::arg("bias").none(), nb::arg("type"))
        .def("sum", &PythonProgram::sum)
        .def("sign", &PythonProgram::sign)
        .def("threshold", &PythonProgram::threshold)
        .def("pool", &PythonProgram::pool)
        .def("pool_signs", &PythonProgram::pool_signs)
        .def("move", &PythonProgram::move)
        .def("output", &PythonProgram::output)
        .def("finish", &PythonProgram::finish)
        .def("run", &PythonProgram::run);
}
