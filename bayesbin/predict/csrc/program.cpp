#include "program.h"

#include <stdexcept>
#include <string>
#include <utility>

namespace bayesbin {

namespace {

[[noreturn]] void refuse(const std::string& what) {
    throw std::invalid_argument("A step of the program " + what + ".");
}

std::string text(const Shape& s) {
    return "(" + std::to_string(s.channels) + ", " + std::to_string(s.height) + ", " +
           std::to_string(s.width) + ")";
}

Window window_at(const int64_t* field) {
    return {field[0], field[1], field[2], field[3], field[4], field[5]};
}

void check_window(const Window& w, const Shape& in) {
    const bool fits = w.height >= 1 && w.width >= 1 && w.step_y >= 1 && w.step_x >= 1 && w.pad_y >= 0 &&
                      w.pad_x >= 0 && in.height + 2 * w.pad_y >= w.height &&
                      in.width + 2 * w.pad_x >= w.width;
    if (!fits)
        refuse("has a window of " + std::to_string(w.height) + " x " + std::to_string(w.width) +
                          ", which does not fit images of " + std::to_string(in.height) + " x " +
                          std::to_string(in.width));
}

template <class T>
const T* address(int64_t number) {
    return reinterpret_cast<const T*>(number);
}

void read_weights(Step& step, const int64_t* row) {
    step.kind = Kind(row[1]);
    if (row[1] < 0 || row[1] > 2) refuse("has an unknown kind of sums");
    if (row[3] != step.in.channels || row[2] < 1)
        refuse("has weights for " + std::to_string(row[3]) + " channels, but gets " +
                          std::to_string(step.in.channels) + "; flatten images before a linear layer");
    step.geometry = {step.in.channels, step.in.height, step.in.width, row[2], window_at(row + 4)};
    check_window(step.geometry.window, step.in);
    step.mode = address<uint64_t>(row[10]);
    step.thresholds = address<uint16_t>(row[11]);
    step.keys = address<uint64_t>(row[12]);
    step.bits = address<uint64_t>(row[13]);
    step.bits_step = row[14];
    if (!step.bits && !(step.mode && step.thresholds && step.keys))
        refuse("has neither bits nor a mode with thresholds and keys");
    step.out = {row[2], step.geometry.out_height(), step.geometry.out_width()};
}

void read_pool(Step& step, const int64_t* row) {
    step.count_padding = row[1] != 0;
    step.window = window_at(row + 4);
    check_window(step.window, step.in);
    const Geometry g{step.in.channels, step.in.height, step.in.width, step.in.channels, step.window};
    step.out = {step.in.channels, g.out_height(), g.out_width()};
}

// The stack of shapes, the one on top last.
void read_stack(Step& step, std::vector<Shape>& stack) {
    if (step.op == Op::PUSH) {
        stack.push_back(step.in);
        return;
    }
    if (stack.empty()) refuse("takes values from an empty stack");
    if (step.op == Op::SWAP) {
        std::swap(step.out, stack.back());
        return;
    }
    const Shape &to = step.in, &from = stack.back();
    if (to.channels != from.channels || to.height != from.height || to.width != from.width)
        refuse("adds values of the shape " + text(from) + " to values of the shape " + text(to));
    stack.pop_back();
}

}  // namespace

std::vector<Step> read_program(const int64_t* rows, int64_t count, Shape shape) {
    std::vector<Step> steps;
    std::vector<Shape> stack;
    for (int64_t index = 0; index < count; ++index) {
        const int64_t* row = rows + index * PROGRAM_FIELDS;
        Step step{};
        step.op = Op(row[0]);
        step.in = step.out = shape;
        switch (step.op) {
            case Op::WEIGHTS: read_weights(step, row); break;
            case Op::AFFINE:
                step.a = address<float>(row[1]);
                step.b = address<float>(row[2]);
                step.a_step = row[3];
                step.b_step = row[4];
                break;
            case Op::CLAMP: step.a = address<float>(row[1]); break;
            case Op::MAX_POOL:
            case Op::AVG_POOL: read_pool(step, row); break;
            case Op::FLATTEN: step.out = {shape.size(), 1, 1}; break;
            case Op::PUSH:
            case Op::SWAP:
            case Op::ADD: read_stack(step, stack); break;
            case Op::RELU:
            case Op::TANH:
            case Op::SIGN: break;
            default: refuse("is of an unknown kind");
        }
        shape = step.out;
        steps.push_back(step);
    }
    if (!stack.empty())
        throw std::invalid_argument("The program leaves " + std::to_string(stack.size()) +
                                    " values on the stack; add them.");
    return steps;
}

}  // namespace bayesbin
