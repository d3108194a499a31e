#include "parallel.h"

#include <algorithm>
#include <cfenv>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <vector>

namespace bayesbin {

namespace {

class DefaultArithmetic {
public:
    DefaultArithmetic() {
        std::fegetenv(&before_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultArithmetic() { std::fesetenv(&before_); }

private:
    std::fenv_t before_;
};

}  // namespace

bool Watch::stopped() {
    if (!stopped_ && poll_ && std::this_thread::get_id() == owner_) {
        const auto now = std::chrono::steady_clock::now();
        if (now - last_ >= POLL_INTERVAL) {
            last_ = now;
            if (poll_()) stopped_ = true;
        }
    }
    return stopped_;
}

void run_units(int64_t units, int threads, Watch& watch,
               const std::function<void(int64_t unit, int worker)>& body) {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable idle;
    int running = 0;
    std::exception_ptr error;

    const auto work = [&](int worker) {
        const DefaultArithmetic arithmetic;
        try {
            for (int64_t unit; !watch.stopped() && (unit = next++) < units;) body(unit, worker);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            if (!error) error = std::current_exception();
            watch.stop();
        }
    };

    std::vector<std::thread> helpers;
    const int wanted = int(std::min<int64_t>(std::max(threads, 1), units));
    for (int worker = 1; worker < wanted; ++worker) {
        {
            const std::lock_guard<std::mutex> lock(mutex);
            ++running;
        }
        try {
            helpers.emplace_back([&, worker] {
                work(worker);
                const std::lock_guard<std::mutex> lock(mutex);
                --running;
                idle.notify_one();
            });
        } catch (const std::system_error&) {  // no more threads to be had: fewer do the same work
            const std::lock_guard<std::mutex> lock(mutex);
            --running;
            break;
        }
    }
    work(0);
    {
        // The helpers may have a while to go: keep asking whether to stop.
        std::unique_lock<std::mutex> lock(mutex);
        while (!idle.wait_for(lock, POLL_INTERVAL, [&] { return running == 0; })) {
            lock.unlock();
            watch.stopped();
            lock.lock();
        }
    }
    for (std::thread& helper : helpers) helper.join();
    if (error) std::rethrow_exception(error);
}

}  // namespace bayesbin
