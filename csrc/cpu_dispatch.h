// Compiles a kernel once per instruction set and calls the one that suits the processor: Google Highway's
// foreach_target.h in small. csrc/README.md shows a kernel that uses it.
//
//   #define FANGYAN_INL "op-inl.h"   // its code is in namespace fangyan::op::FANGYAN_SIMD
//   #include "cpu_dispatch.h"
//   FANGYAN_DISPATCH(kernel)(arguments);
//
// A kernel whose AVX-512 permutes bytes (VBMI: Ice Lake, Zen 4) defines FANGYAN_NEEDS_VBMI beside FANGYAN_INL and is called
// through FANGYAN_DISPATCH_VBMI; other processors with AVX-512 run its AVX2.

#ifndef FANGYAN_CPU_DISPATCH_H_
#define FANGYAN_CPU_DISPATCH_H_

#include <cstdlib>
#include <string_view>

// Always inlined, so that it is compiled for the instruction set of the function that calls it.
#define FANGYAN_INLINE_MEMBER inline __attribute__((always_inline))
#define FANGYAN_INLINE static FANGYAN_INLINE_MEMBER

// Clang ignores GCC's target pragma: it builds the baseline alone, as do other architectures.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FANGYAN_HAS_SIMD_LEVELS

#include <immintrin.h>

namespace fangyan {

enum class SimdLevel { kBaseline, kAvx2, kAvx512 };

// Returns the highest level that the processor has and ATEN_CPU_CAPABILITY (default, avx2 or avx512) allows.
inline SimdLevel simd_level() {
  static const SimdLevel level = [] {
    const char* override = std::getenv("ATEN_CPU_CAPABILITY");
    const std::string_view max_level = override ? override : "";
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (!has_avx2 || max_level == "default") return SimdLevel::kBaseline;
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return has_avx512 && max_level != "avx2" ? SimdLevel::kAvx512 : SimdLevel::kAvx2;
  }();
  return level;
}

// Returns the highest level of a kernel whose AVX-512 needs VBMI.
inline SimdLevel simd_level_with_vbmi() {
  static const SimdLevel level = simd_level() == SimdLevel::kAvx512 && !__builtin_cpu_supports("avx512vbmi")
                                     ? SimdLevel::kAvx2
                                     : simd_level();
  return level;
}

}  // namespace fangyan

// The function of this name in the level's namespace; to be used in the namespace that holds the levels.
#define FANGYAN_DISPATCH_AT(level, function)                    \
  ((level) == ::fangyan::SimdLevel::kAvx512 ? avx512::function \
   : (level) == ::fangyan::SimdLevel::kAvx2 ? avx2::function   \
                                            : baseline::function)
#else
#define FANGYAN_DISPATCH_AT(level, function) baseline::function
#endif
#define FANGYAN_DISPATCH(function) FANGYAN_DISPATCH_AT(::fangyan::simd_level(), function)
#define FANGYAN_DISPATCH_VBMI(function) FANGYAN_DISPATCH_AT(::fangyan::simd_level_with_vbmi(), function)

#endif  // FANGYAN_CPU_DISPATCH_H_

// From here on once per kernel. The compiler's own macros (__AVX2__) do not follow the pragmas, hence ours. An -inl.h
// must include no other header but an -inl.h: what it includes would be compiled for that level alone.
#ifdef FANGYAN_INL

#ifdef FANGYAN_HAS_SIMD_LEVELS
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's bug 105593, in its own AVX-512 header
#endif

#define FANGYAN_SIMD baseline
#include FANGYAN_INL
#undef FANGYAN_SIMD

#ifdef FANGYAN_HAS_SIMD_LEVELS

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define FANGYAN_SIMD avx2
#define FANGYAN_AVX2
#include FANGYAN_INL
#undef FANGYAN_AVX2
#undef FANGYAN_SIMD
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#ifdef FANGYAN_NEEDS_VBMI
#pragma GCC target("avx512vbmi")
#endif
#define FANGYAN_SIMD avx512
#define FANGYAN_AVX512
#include FANGYAN_INL
#undef FANGYAN_AVX512
#undef FANGYAN_SIMD
#pragma GCC pop_options

#pragma GCC diagnostic pop
#endif

#undef FANGYAN_NEEDS_VBMI
#undef FANGYAN_INL
#endif  // FANGYAN_INL
