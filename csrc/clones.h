// One binary for every x86-64 machine.

#pragma once

#include <cstdlib>
#include <string_view>

// The loader picks the widest clone the processor has, whatever PyTorch is told.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FANGYAN_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FANGYAN_CLONES
#endif

#if defined(__x86_64__) && defined(__GNUC__)
namespace fangyan {

enum class Vectors { kNone, kAvx2, kAvx512 };

// The widest vectors that kernels written for them may use: the processor's (of AVX-512, Ice Lake's and Zen 4's), or
// narrower ones that PyTorch is told to use.
inline Vectors widest() {
  static const Vectors found = [] {
    const char* told = std::getenv("ATEN_CPU_CAPABILITY");
    const std::string_view most = told ? told : "";
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (!has_avx2 || most == "default") return Vectors::kNone;
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vbmi");
    return has_avx512 && most != "avx2" ? Vectors::kAvx512 : Vectors::kAvx2;
  }();
  return found;
}

}  // namespace fangyan
#endif

// What a clone calls is compiled with it, for its processor.
#define FANGYAN_MEMBER inline __attribute__((always_inline))
#define FANGYAN_INLINE static FANGYAN_MEMBER
