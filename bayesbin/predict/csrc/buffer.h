// Memory aligned to cache lines, as the isas' vectors need it.
#pragma once

#include <cstddef>
#include <new>

namespace bayesbin {

template <class T>
class Buffer {
public:
    explicit Buffer(size_t count = 0)
        : data_(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64)))) {}
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

}  // namespace bayesbin
