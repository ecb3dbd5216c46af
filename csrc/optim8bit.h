// One step of an optimizer over blocks of 256 elements: states are decoded, updated and encoded again while the block
// is in the first-level cache, so that memory sees every element once.

#pragma once

#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "bfloat16.h"
#include "cpu_dispatch.h"
#include "dynamic_map.h"

namespace fangyan::optim8bit {

constexpr int64_t kBlock = 256;  // elements with a common scale

enum class Dtype { kFloat, kBFloat16, kHalf };
enum class Algorithm { kAdam, kLion, kAdemamix };

// The averages of an algorithm: two for Adam, one for Lion, three for AdEMAMix.
constexpr int kMaxStates = 3;

struct State {
  uint8_t* codes = nullptr;  // null where the state has 32 bits
  float* scales = nullptr;   // the largest absolute value of each block
  float* floats = nullptr;   // null where the state has 8 bits
  const DynamicMap* map = nullptr;
};

struct Arguments {
  Algorithm algorithm;
  void* parameter;
  const void* gradient;
  Dtype parameter_dtype, gradient_dtype;
  uint16_t* bf16_copy;  // of the parameter; null where not wanted
  int64_t size;
  State states[kMaxStates];
  float beta1, beta2, beta3;
  // What an average takes of the gradient (or of its square): 1 - beta, which loses digits in float32, times the
  // gradient's scale (or its square).
  float gradient_factor1, gradient_factor2, gradient_factor3;
  float alpha;
  float decay;            // factor on the parameter, 1 - lr * weight_decay
  float lr;               // Lion's
  float mix_correction;   // AdEMAMix': 1 / (1 - beta1^step)
  float root_correction;  // 1 / sqrt(1 - beta2^step), divided by lr over the first average's correction
  float eps;              // divided by the same
};

// Stands in for the map of a state with 32 bits.
inline const DynamicMap kNoMap{};

}  // namespace fangyan::optim8bit

#define FANGYAN_INL "optim8bit-inl.h"
#define FANGYAN_NEEDS_VBMI
#include "cpu_dispatch.h"
