// Detection asks the operating system as well as the processor: registers it does not save must not be used.
#include "cpu.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace phial {
namespace {

#if defined(__x86_64__) || defined(_M_X64)

// __builtin_cpu_supports checks XGETBV, so a feature the operating system does not save reads as absent.
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // each such CPU has F16C (clang 14 cannot ask)
}
bool has_avx512vnni() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

#elif defined(__aarch64__) && defined(__linux__)

bool has_dotprod() { return getauxval(AT_HWCAP) & (1ul << 20); }  // HWCAP_ASIMDDP
bool has_i8mm() { return getauxval(AT_HWCAP2) & (1ul << 13); }    // HWCAP2_I8MM

#elif defined(__aarch64__) && defined(__APPLE__)

bool sysctl_flag(const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value;
}
bool has_dotprod() { return sysctl_flag("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return sysctl_flag("hw.optional.arm.FEAT_I8MM"); }

#elif defined(__aarch64__) || defined(_M_ARM64)

bool has_dotprod() { return false; }
bool has_i8mm() { return false; }

#endif

const Kernels* find(const std::string& name) {
    std::string known;
    for (const Kernels* k : usable_kernels()) {
        if (name == k->name) return k;
        known += (known.empty() ? "" : ", ") + std::string(k->name);
    }
    throw std::invalid_argument("no kernel set '" + name + "' on this CPU; usable: " + known);
}

const Kernels*& chosen() {
    static const Kernels* set = [] {
        const char* name = std::getenv("PHIAL_KERNELS");
        return name && *name ? find(name) : usable_kernels().back();
    }();
    return set;
}

}  // namespace

std::vector<std::string> cpu_features() {
    std::vector<std::string> names;
#if defined(__x86_64__) || defined(_M_X64)
    if (__builtin_cpu_supports("sse4.2")) names.push_back("sse4.2");
    if (has_avx2()) names.insert(names.end(), {"avx2", "fma", "f16c"});
    if (__builtin_cpu_supports("avx512f")) names.push_back("avx512f");
    if (has_avx512vnni()) names.push_back("avx512vnni");
#elif defined(__aarch64__) || defined(_M_ARM64)
    names.push_back("neon");
    if (has_dotprod()) names.push_back("dotprod");
    if (has_i8mm()) names.push_back("i8mm");
#endif
    return names;
}

std::vector<const Kernels*> usable_kernels() {
    std::vector<const Kernels*> sets = {&scalar_kernels()};
#if defined(__x86_64__) || defined(_M_X64)
    if (has_avx2()) sets.push_back(&avx2_kernels());
    if (has_avx512vnni()) sets.push_back(&avx512vnni_kernels());
#elif defined(__aarch64__) || defined(_M_ARM64)
    if (has_dotprod()) sets.push_back(&neon_dotprod_kernels());
    if (has_dotprod() && has_i8mm()) sets.push_back(&neon_i8mm_kernels());
#endif
    return sets;
}

const Kernels& current_kernels() { return *chosen(); }

void use_kernels(const std::string& name) { chosen() = find(name); }

}  // namespace phial
