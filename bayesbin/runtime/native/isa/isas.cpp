// Which isas there are, and which of them is meant.
#include <cstdlib>
#include <stdexcept>

#include "../canonical.h"
#include "isa.h"

namespace bayesbin {

extern const Isa PORTABLE;
#ifdef BAYESBIN_X86
extern const Isa AVX2;
extern const Isa AVX512;
#endif
#ifdef BAYESBIN_NEON
extern const Isa NEON;
#endif

namespace {

const std::vector<const Isa*>& compiled() {
    static const std::vector<const Isa*> all = {
        &PORTABLE,
#ifdef BAYESBIN_X86
        &AVX2,
        &AVX512,
#endif
#ifdef BAYESBIN_NEON
        &NEON,
#endif
    };
    return all;
}

std::string names(const std::vector<const Isa*>& some) {
    std::string list;
    for (const Isa* isa : some) list += (list.empty() ? "" : ", ") + std::string(isa->name);
    return list;
}

}  // namespace

const std::vector<const Isa*>& isas() {
    static const std::vector<const Isa*> runnable = [] {
        std::vector<const Isa*> found;
        for (const Isa* isa : compiled())
            if (isa->runs_here()) found.push_back(isa);
        return found;
    }();
    return runnable;
}

const Isa& isa_named(const std::string& name) {
    static const std::string forced = [] {  // read once: Python may change the environment later
        const char* value = std::getenv("BAYESBIN_KERNEL");
        return std::string(value ? value : "");
    }();
    const std::string& wanted = name.empty() ? forced : name;
    if (wanted.empty()) return *isas().back();
    for (const Isa* isa : isas())
        if (wanted == isa->name) return *isa;
    for (const char* known : {"portable", "avx2", "avx512", "neon"})
        if (wanted == known)
            throw std::invalid_argument("The kernel isa '" + wanted +
                                        "' does not run on this machine; it can run " + names(isas()) +
                                        ".");
    throw std::invalid_argument(
        "A kernel isa (BAYESBIN_KERNEL) is one of portable, avx2, avx512, neon; got '" + wanted +
        "'. This machine can run " + names(isas()) + ".");
}

// Steps, parities and q, c, sums of all panels: as FastScratch lays them out, rounded up.
size_t fast_bytes(int64_t inputs, int64_t units, int lanes) {
    const int64_t padded = ceil_div(inputs, 32) * 32;
    return size_t(3 * MAX_LANES * 4 + units * lanes * 8 + padded * lanes * 2 + padded / 4 * lanes * 2);
}

}  // namespace bayesbin
