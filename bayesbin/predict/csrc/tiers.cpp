// Which tiers there are, and which of them is meant.
#include <cstdlib>
#include <stdexcept>

#include "canonical.h"
#include "tier.h"

namespace bayesbin {

extern const Tier PORTABLE;
#ifdef BAYESBIN_X86
extern const Tier AVX2;
extern const Tier AVX512;
#endif
#ifdef BAYESBIN_NEON
extern const Tier NEON;
#endif

namespace {

const std::vector<const Tier*>& compiled() {
    static const std::vector<const Tier*> all = {
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

std::string names(const std::vector<const Tier*>& some) {
    std::string list;
    for (const Tier* tier : some) list += (list.empty() ? "" : ", ") + std::string(tier->name);
    return list;
}

}  // namespace

const std::vector<const Tier*>& tiers() {
    static const std::vector<const Tier*> runnable = [] {
        std::vector<const Tier*> found;
        for (const Tier* tier : compiled())
            if (tier->runs_here()) found.push_back(tier);
        return found;
    }();
    return runnable;
}

const Tier& tier_named(const std::string& name) {
    static const std::string forced = [] {  // read once: Python may change the environment later
        const char* value = std::getenv("BAYESBIN_KERNEL");
        return std::string(value ? value : "");
    }();
    const std::string& wanted = name.empty() ? forced : name;
    if (wanted.empty()) return *tiers().back();
    for (const Tier* tier : tiers())
        if (wanted == tier->name) return *tier;
    for (const char* known : {"portable", "avx2", "avx512", "neon"})
        if (wanted == known)
            throw std::invalid_argument("The kernel tier '" + wanted +
                                        "' does not run on this machine; it can run " + names(tiers()) +
                                        ".");
    throw std::invalid_argument(
        "A kernel tier (BAYESBIN_KERNEL) is one of portable, avx2, avx512, neon; got '" + wanted +
        "'. This machine can run " + names(tiers()) + ".");
}

// Steps, parities and q, c, sums of all panels: as FastScratch lays them out, rounded up.
size_t fast_bytes(int64_t inputs, int64_t units, int lanes) {
    const int64_t padded = ceil_div(inputs, 32) * 32;
    return size_t(3 * MAX_LANES * 4 + units * lanes * 8 + padded * lanes * 2 + padded / 4 * lanes * 2);
}

}  // namespace bayesbin
