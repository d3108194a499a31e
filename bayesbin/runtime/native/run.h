// Running a program: bits are drawn, used and forgotten.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "program.h"

namespace bayesbin {

// One worker's copy of a program's values: the state of one draw, and a block of rows on its way through.
class Worker {
public:
    Worker(const Program& program, const Isa& isa, int lanes);

    const Isa& isa() const { return isa_; }
    int lanes() const { return lanes_; }
    size_t bytes() const;

    // Make the state of a draw. False if the watch stopped it.
    bool prepare(const Context& context);

    // Rows [first, end) of the inputs, at most `lanes`, through the steps. False if the watch stopped it.
    bool run(const Context& context, const std::vector<const void*>& inputs, int64_t first, int64_t end);

    // Put an output's rows where they belong: row `first` to `out`.
    void store(size_t output, int64_t count, void* out) const;

private:
    const void* as(int slot, Type wanted, int lanes);

    const Program& program_;
    const Isa& isa_;
    int lanes_, used_ = 1;
    std::vector<Buffer<uint8_t>> buffers_;
    std::vector<State> states_;
    Scratch scratch_;
};

// An array that a call reads: rows of numbers, for each draw of the call or (step 0) for all.
struct Given {
    const void* data;
    int64_t step;  // numbers from one draw to the next
};

// Programs are run from several threads at once; what workers have allocated is kept for the next call.
class Runner {
public:
    explicit Runner(std::shared_ptr<const Program> program) : program_(std::move(program)) {}

    const Program& program() const { return *program_; }

    // Run draws of the program over rows of the inputs; output i gets (draws, rows, size). The result is
    // the same, bit for bit, for every number of threads. After a stop by the watch it is unfinished.
    void run(const Isa& isa, const std::vector<Given>& inputs, const std::vector<Argument>& arguments,
             int64_t rows, const std::vector<int64_t>& draws, const std::vector<void*>& outputs,
             int threads, Watch& watch);

private:
    std::unique_ptr<Worker> worker(const Isa& isa, int lanes);
    void put_back(std::unique_ptr<Worker> worker);

    std::shared_ptr<const Program> program_;
    std::mutex mutex_;
    std::vector<std::unique_ptr<Worker>> idle_;
};

}  // namespace bayesbin
