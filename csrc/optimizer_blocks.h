// A step of an optimizer over blocks of 256 numbers: states are decoded, updated and encoded again while the block
// is in the first-level cache, so that memory sees every number once.

#pragma once

#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "clones.h"
#include "dynamic_map.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#endif

namespace fangyan {

constexpr int64_t kBlock = 256;  // numbers with a common scale

enum class Number { kFloat, kBFloat16, kHalf };
enum class Rule { kAdam, kLion, kAdemamix };

// The averages of a rule: two for Adam, one for Lion, three for AdEMAMix.
constexpr int kMostStates = 3;

struct State {
  uint8_t* codes;    // null where the state has 32 bits
  float* scales;     // a block's largest absolute value
  float* floats;
  const DynamicMap* map;
};

struct Step {
  Rule rule;
  void* parameter;
  const void* gradient;
  Number parameter_kind, gradient_kind;
  uint16_t* copy;  // of the parameter, in bfloat16; null where not wanted
  int64_t size;
  State states[kMostStates];
  float beta1, beta2, beta3, rest1, rest2, rest3;  // each and 1 - beta, which loses digits in float32
  float alpha;
  float decay;            // factor on the parameter, 1 - lr * weight_decay
  float rate;             // lr, of Lion; the others' two below are divided by lr over the first average's correction
  float eps;
  float root_correction;  // 1 / sqrt(1 - beta2^step)
  float mix_correction;   // 1 / (1 - beta1^step), of AdEMAMix
};

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's bug 105593, in its own AVX-512 header
#endif

namespace baseline {
#include "optimizer_blocks.inc"
}

// As for tag_tiles.h. The compiler's own macros do not follow the pragmas.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define FANGYAN_AVX2
namespace avx2 {
#include "optimizer_blocks.inc"
}
#undef FANGYAN_AVX2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,prefer-vector-width=512")
#define FANGYAN_AVX512
namespace avx512 {
#include "optimizer_blocks.inc"
}
#undef FANGYAN_AVX512
#pragma GCC pop_options

inline int64_t step_blocks(const Step& s, int64_t begin, int64_t end) {
  switch (widest()) {
    case Vectors::kAvx512: return avx512::step_blocks(s, begin, end);
    case Vectors::kAvx2: return avx2::step_blocks(s, begin, end);
    case Vectors::kNone: break;
  }
  return baseline::step_blocks(s, begin, end);
}
#else
using baseline::step_blocks;
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

}  // namespace fangyan
