#include "fused.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "canonical.h"
#include "network.h"

namespace bayesbin {

namespace {

// A unit of work is a draw for a segment of rows. A row's sums know nothing of the other rows, and the
// draws are added up in order, so the result does not depend on the number of threads or segments.
constexpr int64_t SEGMENT_ROWS = 1024;  // enough for the drawing of the bits to be small beside their use

// Rows of a segment: fewer than that where some threads would have nothing to do.
int64_t segment_rows(int64_t rows, int64_t draws, int threads) {
    const int64_t shares = std::max<int64_t>(1, threads / std::max<int64_t>(1, draws));
    return std::min(SEGMENT_ROWS, ceil_div(ceil_div(rows, shares), MAX_LANES) * MAX_LANES);
}

// Whose turn it is to add its sums to those of a segment.
class Turns {
public:
    explicit Turns(int64_t segments) : next_(size_t(segments), 0) {}

    // Wait for the turn of a draw; false if the watch stopped first. Draws are handed out in order, so
    // whoever is waited for is at work.
    bool wait(int64_t segment, int64_t draw, Watch& watch) {
        std::unique_lock<std::mutex> lock(mutex_);
        while (!changed_.wait_for(lock, POLL_INTERVAL, [&] { return next_[size_t(segment)] == draw; })) {
            lock.unlock();
            if (watch.stopped()) return false;
            lock.lock();
        }
        return true;
    }
    void done(int64_t segment) {
        const std::lock_guard<std::mutex> lock(mutex_);
        ++next_[size_t(segment)];
        changed_.notify_all();
    }

private:
    std::vector<int64_t> next_;
    std::mutex mutex_;
    std::condition_variable changed_;
};

struct Worker {
    Network network;
    Buffer<double> memory;
    Sums sums;

    Worker(const Isa& isa, const std::vector<Step>& steps, Shape input, int64_t rows, int64_t outputs)
        : network(isa, steps, input, lanes_for(rows)), memory(size_t(rows * (3 * outputs + 1))) {
        double* at = memory.get();
        const int64_t size = rows * outputs;
        sums = {at, at + size, at + 2 * size, at + 2 * size + rows};
    }
};

}  // namespace

void fused_predict(const Isa& isa, const std::vector<Step>& steps, Shape input, const float* x,
                   int64_t rows, int64_t draws, Head head, Sums sums, float* each, int threads,
                   Watch& watch) {
    const int64_t outputs = steps.empty() ? input.size() : steps.back().out.size();
    const int64_t most = segment_rows(rows, draws, threads);
    const int64_t segments = most > 0 ? ceil_div(rows, most) : 0;
    clear(sums, rows, outputs);
    if (segments * draws == 0) return;
    threads = int(std::clamp<int64_t>(threads, 1, segments * draws));
    std::vector<Worker> workers;
    workers.reserve(size_t(threads));
    for (int i = 0; i < threads; ++i)
        workers.emplace_back(isa, steps, input, std::min(rows, most), outputs);
    Turns turns(segments);

    run_units(segments * draws, threads, watch, [&](int64_t unit, int id) {
        Worker& worker = workers[size_t(id)];
        const int64_t segment = unit % segments, draw = unit / segments;
        const int64_t begin = segment * most, end = std::min(rows, begin + most);
        clear(worker.sums, end - begin, outputs);
        if (!worker.network.set_draw(draw, watch)) return;
        for (int64_t row = begin; row < end; row += MAX_LANES) {
            const int64_t count = std::min<int64_t>(end - row, MAX_LANES);
            const int lanes = lanes_for(count);
            const float* values = worker.network.run(x, end, row, lanes, watch);
            if (!values) return;
            add_draw(head, worker.sums.from_row(row - begin, outputs), values, lanes, count, outputs, 0);
            if (!each) continue;
            for (int64_t r = 0; r < count; ++r)
                for (int64_t c = 0; c < outputs; ++c)
                    each[(draw * rows + row + r) * outputs + c] = values[c * lanes + r];
        }
        if (!turns.wait(segment, draw, watch)) return;
        merge(head, sums.from_row(begin, outputs), draw, worker.sums, 1, end - begin, outputs);
        turns.done(segment);
    });
}

}  // namespace bayesbin
