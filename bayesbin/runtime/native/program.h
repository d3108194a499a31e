// A program: steps over values in slots, checked as they are added, and where the values lie in memory.
#pragma once

#include <memory>
#include <vector>

#include "step.h"

namespace bayesbin {

class Program {
public:
    // An input or an output of the program: a value, and the type that its array has.
    struct Port {
        int slot;
        Type array;
    };

    explicit Program(int64_t draws);

    // A value that comes from outside; `shared`: the same for all draws of a call.
    int input(Value value, Type array, bool shared);
    // Numbers that each call hands over.
    Numbers argument(Type type, int64_t size);
    int add(std::unique_ptr<Step> step, std::vector<int> inputs);
    void output(int slot, Type array);
    // Say where values lie; nothing is added after that.
    void finish();

    int64_t draws() const { return draws_; }
    const Value& value(int slot) const;
    const std::vector<Port>& inputs() const { return inputs_; }
    const std::vector<bool>& shared() const { return shared_; }
    const std::vector<Port>& outputs() const { return outputs_; }
    const std::vector<std::unique_ptr<Step>>& steps() const { return steps_; }
    const std::vector<Numbers>& arguments() const { return arguments_; }
    bool finished() const { return finished_; }

    // The buffer of a slot, and how many bytes each buffer has for each lane.
    int buffer(int slot) const { return buffers_[size_t(slot)]; }
    const std::vector<int64_t>& buffer_bytes() const { return buffer_bytes_; }

private:
    int add_value(Value value);
    void open() const;
    std::vector<size_t> last_uses() const;
    int buffer_for(int64_t bytes, std::vector<int>& free);

    int64_t draws_;
    bool finished_ = false;
    std::vector<Value> values_;
    std::vector<Port> inputs_, outputs_;
    std::vector<bool> shared_;
    std::vector<Numbers> arguments_;
    std::vector<std::unique_ptr<Step>> steps_;
    std::vector<int> buffers_;
    std::vector<int64_t> buffer_bytes_;
};

}  // namespace bayesbin
