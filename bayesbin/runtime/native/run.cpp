#include "run.h"

#include <algorithm>
#include <cstring>

#include "canonical.h"

namespace bayesbin {

namespace {

// A unit of work is a draw for a segment of rows. A row's sums know nothing of the other rows, so the
// result does not depend on the number of threads or segments.
constexpr int64_t SEGMENT_ROWS = 1024;  // enough for the drawing of the bits to be small beside their use
constexpr int64_t TILE = 16;  // numbers transposed at once: their lanes stay in the first-level cache
constexpr size_t MOST_KEPT = size_t(16) << 20;  // bytes of a worker that is kept for the next call

// Rows of a segment: fewer than that where some threads would have nothing to do.
int64_t segment_rows(int64_t rows, int64_t draws, int threads) {
    const int64_t shares = std::max<int64_t>(1, threads / std::max<int64_t>(1, draws));
    return std::min(SEGMENT_ROWS, ceil_div(ceil_div(rows, shares), MAX_LANES) * MAX_LANES);
}

template <class From, class To>
struct Convert {
    static To of(From x) { return To(x); }
};
template <class From>
struct Convert<From, int8_t> {
    static int8_t of(From x) { return x >= From(0) ? 1 : -1; }
};

// Rows [first, end) of x (rows, size) into lanes; lanes past the last row are 0.
template <class From, class To>
void to_lanes(const From* x, int64_t first, int64_t end, int64_t size, int lanes, To* out) {
    if (lanes == 1) {
        for (int64_t k = 0; k < size; ++k) out[k] = Convert<From, To>::of(x[first * size + k]);
        return;
    }
    for (int64_t k0 = 0; k0 < size; k0 += TILE)
        for (int r = 0; r < lanes; ++r) {
            const bool there = first + r < end;
            const From* row = x + (there ? first + r : first) * size;
            for (int64_t k = k0; k < std::min(size, k0 + TILE); ++k)
                out[k * lanes + r] = there ? Convert<From, To>::of(row[k]) : To(0);
        }
}

template <class From, class To>
void from_lanes(const From* x, int lanes, int64_t count, int64_t size, To* out) {
    if (lanes == 1) {
        for (int64_t k = 0; k < size; ++k) out[k] = To(x[k]);
        return;
    }
    for (int64_t k0 = 0; k0 < size; k0 += TILE)
        for (int64_t r = 0; r < count; ++r)
            for (int64_t k = k0; k < std::min(size, k0 + TILE); ++k) out[r * size + k] = To(x[k * lanes + r]);
}

template <class What>
void with_any_type(Type type, const What& what) {
    if (type == Type::SIGN)
        what(int8_t());
    else
        with_type(type, what);
}

}  // namespace

Worker::Worker(const Program& program, const Isa& isa, int lanes)
    : program_(program), isa_(isa), lanes_(lanes), states_(program.steps().size()) {
    for (const int64_t bytes : program.buffer_bytes()) buffers_.emplace_back(size_t(bytes * lanes));
}

size_t Worker::bytes() const {
    size_t total = scratch_.size();
    for (const int64_t bytes : program_.buffer_bytes()) total += size_t(bytes * lanes_);
    for (const State& state : states_) total += state.bytes;
    return total;
}

bool Worker::prepare(const Context& context) {
    for (size_t i = 0; i < states_.size(); ++i)
        if (!program_.steps()[i]->prepare(context, states_[i])) return false;
    return true;
}

// The values of a slot in the type that a step reads.
const void* Worker::as(int slot, Type wanted, int lanes) {
    const Value& value = program_.value(slot);
    const void* there = buffers_[size_t(program_.buffer(slot))].get();
    if (value.type == wanted) return there;
    const int64_t count = value.size * lanes;
    if (wanted == Type::SIGN) {
        int8_t* out = scratch_.take<int8_t>(count);
        with_type(value.type, [&](auto zero) {
            typedef decltype(zero) T;
            arithmetic<T>(isa_).sign(static_cast<const T*>(there), out, count);
        });
        return out;
    }
    if (value.type == Type::SIGN) {
        const void* found = nullptr;
        with_type(wanted, [&](auto zero) {
            typedef decltype(zero) T;
            T* out = scratch_.take<T>(count);
            arithmetic<T>(isa_).widen(static_cast<const int8_t*>(there), out, count);
            found = out;
        });
        return found;
    }
    if (wanted == Type::F4) {
        float* out = scratch_.take<float>(count);
        isa_.narrow(static_cast<const double*>(there), out, count);
        return out;
    }
    double* out = scratch_.take<double>(count);
    isa_.extend(static_cast<const float*>(there), out, count);
    return out;
}

bool Worker::run(const Context& context, const std::vector<const void*>& inputs, int64_t first, int64_t end) {
    const int lanes = used_ = lanes_for(end - first);
    for (size_t i = 0; i < inputs.size(); ++i) {
        const Program::Port& port = program_.inputs()[i];
        const Value& value = program_.value(port.slot);
        void* to = buffers_[size_t(program_.buffer(port.slot))].get();
        with_type(port.array, [&](auto from) {
            with_any_type(value.type, [&](auto zero) {
                to_lanes(static_cast<const decltype(from)*>(inputs[i]), first, end, value.size, lanes,
                         static_cast<decltype(zero)*>(to));
            });
        });
    }
    const void* in[256];
    for (size_t i = 0; i < states_.size(); ++i) {
        if (context.watch.stopped()) return false;
        const Step& step = *program_.steps()[i];
        scratch_.clear();
        for (size_t place = 0; place < step.inputs.size(); ++place)
            in[place] = as(step.inputs[place], step.wanted[place], lanes);
        step.run({context, states_[i], lanes, in, buffers_[size_t(program_.buffer(step.output))].get(), scratch_});
    }
    scratch_.clear();
    return true;
}

void Worker::store(size_t output, int64_t count, void* out) const {
    const Program::Port& port = program_.outputs()[output];
    const Value& value = program_.value(port.slot);
    const void* there = buffers_[size_t(program_.buffer(port.slot))].get();
    with_any_type(value.type, [&](auto from) {
        with_type(port.array, [&](auto zero) {
            from_lanes(static_cast<const decltype(from)*>(there), used_, count, value.size,
                       static_cast<decltype(zero)*>(out));
        });
    });
}

std::unique_ptr<Worker> Runner::worker(const Isa& isa, int lanes) {
    // After a fork the mutex may be held by a thread that is not there: rather allocate than wait.
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock.owns_lock())
        for (auto& idle : idle_)
            if (&idle->isa() == &isa && idle->lanes() >= lanes) {
                std::unique_ptr<Worker> found = std::move(idle);
                idle_.erase(idle_.begin() + (&idle - idle_.data()));
                return found;
            }
    return std::make_unique<Worker>(*program_, isa, lanes);
}

void Runner::put_back(std::unique_ptr<Worker> worker) {
    if (worker->bytes() > MOST_KEPT) return;
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock.owns_lock() && idle_.size() < 4) idle_.push_back(std::move(worker));
}

void Runner::run(const Isa& isa, const std::vector<Given>& inputs, const std::vector<Argument>& arguments,
                 int64_t rows, const std::vector<int64_t>& draws, const std::vector<void*>& outputs,
                 int threads, Watch& watch) {
    const Program& program = *program_;
    const int64_t many = int64_t(draws.size());
    const int64_t most = segment_rows(rows, many, threads);
    const int64_t segments = most > 0 ? ceil_div(rows, most) : 0;
    if (segments * many == 0) return;
    threads = int(std::clamp<int64_t>(threads, 1, segments * many));
    std::vector<std::unique_ptr<Worker>> workers;
    for (int i = 0; i < threads; ++i) workers.push_back(worker(isa, lanes_for(std::min(rows, most))));

    run_units(segments * many, threads, watch, [&](int64_t unit, int id) {
        Worker& worker = *workers[size_t(id)];
        const int64_t segment = unit % segments, place = unit / segments;
        const int64_t begin = segment * most, end = std::min(rows, begin + most);
        const Context context{isa, {draws[size_t(place)], place}, &arguments, watch};
        if (!worker.prepare(context)) return;
        std::vector<const void*> from;
        for (size_t i = 0; i < inputs.size(); ++i)
            from.push_back(static_cast<const char*>(inputs[i].data) +
                           place * inputs[i].step * bytes_of(program.inputs()[i].array));
        for (int64_t row = begin; row < end; row += MAX_LANES) {
            const int64_t count = std::min<int64_t>(end - row, MAX_LANES);
            if (!worker.run(context, from, row, row + count)) return;
            for (size_t i = 0; i < outputs.size(); ++i) {
                const Program::Port& port = program.outputs()[i];
                const int64_t size = program.value(port.slot).size;
                worker.store(i, count,
                             static_cast<char*>(outputs[i]) +
                                 (place * rows + row) * size * bytes_of(port.array));
            }
        }
    });
    for (auto& worker : workers) put_back(std::move(worker));
}

}  // namespace bayesbin
