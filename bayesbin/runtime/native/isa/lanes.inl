// Vectors of lanes, in the compiler's own vector types. Included inside the namespace of an isa, which
// defines NATIVE, the bytes of its registers. Whole numbers are unsigned, so that they may wrap around.

template <class T, int N>
struct VectorOf {
    typedef T type __attribute__((vector_size(sizeof(T) * N), may_alias));
};

// LANES numbers of type T in as many registers as they need.
template <class T, int LANES>
struct Lanes {
    static constexpr int BYTES = int(sizeof(T)) * LANES < NATIVE ? int(sizeof(T)) * LANES : NATIVE;
    static constexpr int WIDTH = BYTES / int(sizeof(T));  // lanes of one register
    static constexpr int COUNT = LANES / WIDTH;           // registers
    typedef typename VectorOf<T, WIDTH>::type Vector;
    typedef Vector Anywhere __attribute__((aligned(1)));
    Vector v[COUNT];

    static Lanes zero() {
        Lanes z;
        for (int i = 0; i < COUNT; ++i) z.v[i] = Vector{};
        return z;
    }
    static Lanes load(const T* from) {
        Lanes z;
        for (int i = 0; i < COUNT; ++i) z.v[i] = *reinterpret_cast<const Anywhere*>(from + i * WIDTH);
        return z;
    }
    void store(T* to) const {
        for (int i = 0; i < COUNT; ++i) *reinterpret_cast<Anywhere*>(to + i * WIDTH) = v[i];
    }
    friend Lanes operator+(const Lanes& a, const Lanes& b) {
        Lanes z;
        for (int i = 0; i < COUNT; ++i) z.v[i] = a.v[i] + b.v[i];
        return z;
    }
    friend Lanes operator-(const Lanes& a, const Lanes& b) {
        Lanes z;
        for (int i = 0; i < COUNT; ++i) z.v[i] = a.v[i] - b.v[i];
        return z;
    }
};
