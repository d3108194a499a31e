// Memory aligned to cache lines, as the isas' vectors need it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace bayesbin {

template <class T>
class Buffer {
public:
    explicit Buffer(size_t count = 0)
        : data_(count ? static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))) : nullptr) {}
    ~Buffer() { release(); }
    Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
    Buffer& operator=(Buffer&& other) noexcept {
        if (this != &other) {
            release();
            data_ = other.data_;
            other.data_ = nullptr;
        }
        return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    T* get() const { return data_; }
    T& operator[](size_t i) const { return data_[i]; }

private:
    void release() {
        if (data_) ::operator delete(data_, std::align_val_t(64));
    }
    T* data_;
};

// Room for what a step works with, handed out piece after piece and taken back all at once. It grows until
// the first steps have told how much is needed, and is one piece from then on.
class Scratch {
public:
    template <class T>
    T* take(int64_t count) {
        const size_t bytes = (size_t(count) * sizeof(T) + 63) / 64 * 64;
        used_ += bytes;
        if (used_ <= size_) return reinterpret_cast<T*>(first_.get() + used_ - bytes);
        more_.emplace_back(bytes);
        return reinterpret_cast<T*>(more_.back().get());
    }
    void clear() {
        if (used_ > size_) {
            more_.clear();
            first_ = Buffer<uint8_t>();
            first_ = Buffer<uint8_t>(used_);
            size_ = used_;
        }
        used_ = 0;
    }
    size_t size() const { return size_; }

private:
    Buffer<uint8_t> first_;
    std::vector<Buffer<uint8_t>> more_;
    size_t size_ = 0, used_ = 0;
};

}  // namespace bayesbin
