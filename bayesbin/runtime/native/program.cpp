#include "program.h"

#include <algorithm>

namespace bayesbin {

Program::Program(int64_t draws) : draws_(draws) {
    if (draws < 1) throw std::invalid_argument("A program has at least 1 draw; got " + std::to_string(draws) + ".");
}

void Program::open() const {
    if (finished_) throw std::invalid_argument("The program is finished; nothing can be added to it.");
}

int Program::add_value(Value value) {
    if (value.size < 1) throw std::invalid_argument("A value has at least 1 number.");
    values_.push_back(value);
    return int(values_.size()) - 1;
}

const Value& Program::value(int slot) const {
    if (slot < 0 || size_t(slot) >= values_.size())
        throw std::invalid_argument("There is no value number " + std::to_string(slot) + ".");
    return values_[size_t(slot)];
}

int Program::input(Value value, Type array, bool shared) {
    open();
    if (array == Type::SIGN) throw std::invalid_argument("Arrays of inputs are float32 or float64.");
    inputs_.push_back({add_value(value), array});
    shared_.push_back(shared);
    return inputs_.back().slot;
}

Numbers Program::argument(Type type, int64_t size) {
    open();
    Numbers numbers;
    numbers.type = type;
    numbers.size = size;
    numbers.argument = int(arguments_.size());
    arguments_.push_back(numbers);
    return numbers;
}

int Program::add(std::unique_ptr<Step> step, std::vector<int> inputs) {
    open();
    if (inputs.size() != step->wanted.size()) refuse("has another number of inputs than it takes");
    for (const int slot : inputs) value(slot);
    step->inputs = std::move(inputs);
    step->output = add_value(step->value);
    steps_.push_back(std::move(step));
    return steps_.back()->output;
}

void Program::output(int slot, Type array) {
    open();
    value(slot);
    if (array == Type::SIGN) throw std::invalid_argument("Arrays of outputs are float32 or float64.");
    outputs_.push_back({slot, array});
}

// For each slot the place of the last step that reads it; outputs are read after all.
std::vector<size_t> Program::last_uses() const {
    std::vector<size_t> last(values_.size(), 0);
    for (size_t place = 0; place < steps_.size(); ++place)
        for (const int slot : steps_[place]->inputs) last[size_t(slot)] = place;
    for (const Port& port : outputs_) last[size_t(port.slot)] = steps_.size();
    return last;
}

// Of the free buffers the smallest that is large enough, or the largest made larger, or a new one.
int Program::buffer_for(int64_t bytes, std::vector<int>& free) {
    const auto better = [&](int a, int b) {
        const int64_t x = buffer_bytes_[size_t(a)], y = buffer_bytes_[size_t(b)];
        if ((x >= bytes) != (y >= bytes)) return x >= bytes;
        return x >= bytes ? x < y : x > y;
    };
    const auto found = std::min_element(free.begin(), free.end(), better);
    if (found == free.end()) {
        buffer_bytes_.push_back(bytes);
        return int(buffer_bytes_.size()) - 1;
    }
    const int buffer = *found;
    free.erase(found);
    buffer_bytes_[size_t(buffer)] = std::max(buffer_bytes_[size_t(buffer)], bytes);
    return buffer;
}

void Program::finish() {
    open();
    if (outputs_.empty()) throw std::invalid_argument("A program has at least one output.");
    finished_ = true;
    const std::vector<size_t> last = last_uses();
    std::vector<int> free;
    buffers_.assign(values_.size(), -1);
    const auto bytes = [&](int slot) { return value(slot).size * bytes_of(value(slot).type); };
    for (const Port& port : inputs_) buffers_[size_t(port.slot)] = buffer_for(bytes(port.slot), free);
    for (size_t place = 0; place < steps_.size(); ++place) {
        Step& step = *steps_[place];
        const int first = step.inputs[0];
        const bool same = value(first).type == step.wanted[0] && step.wanted[0] == step.value.type;
        step.in_place = step.in_place && same && last[size_t(first)] == place;
        const size_t out = size_t(step.output);
        buffers_[out] = step.in_place ? buffers_[size_t(first)] : buffer_for(bytes(step.output), free);
        std::vector<int> dead = step.inputs;
        if (last[out] <= place && last[out] != steps_.size()) dead.push_back(step.output);  // nobody reads it
        std::sort(dead.begin(), dead.end());
        dead.erase(std::unique(dead.begin(), dead.end()), dead.end());
        for (const int slot : dead) {
            const bool goes = slot == step.output || last[size_t(slot)] == place;
            if (goes && !(step.in_place && slot == first && slot != step.output))
                free.push_back(buffers_[size_t(slot)]);
        }
    }
}

}  // namespace bayesbin
