// Work on several threads, which the caller can stop.
//
// Threads are started by each call and joined before it returns: some 20 microseconds each, against
// calls of a millisecond and more. No thread and no lock outlives a call, so that a process may fork
// between calls and calls from several threads know nothing of each other.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>

namespace bayesbin {

constexpr std::chrono::milliseconds POLL_INTERVAL{50};

// Whether to stop. The thread that made the Watch asks `poll` now and then (in Python: has a signal
// arrived?); all threads see its answer.
class Watch {
public:
    explicit Watch(std::function<bool()> poll = nullptr)
        : poll_(std::move(poll)), last_(std::chrono::steady_clock::now()) {}

    // Cheap: to be called between pieces of work of up to a few milliseconds.
    bool stopped();
    void stop() { stopped_ = true; }

private:
    std::function<bool()> poll_;
    std::thread::id owner_ = std::this_thread::get_id();
    std::chrono::steady_clock::time_point last_;
    std::atomic<bool> stopped_{false};
};

// Call body(unit, worker) for every unit from 0 to units - 1, handed out in that order, with worker
// below `threads`. The calling thread is worker 0. Arithmetic is in the default environment (rounding
// to nearest, denormals kept) whatever the calling thread has set. What a body throws stops all
// workers and is thrown again here.
void run_units(int64_t units, int threads, Watch& watch,
               const std::function<void(int64_t unit, int worker)>& body);

}  // namespace bayesbin
