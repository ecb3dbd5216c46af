// Dropout of LoRA's input: an element is kept or not by a hash of the seed and of its place, so that no mask is stored;
// lora_linear/reference.py owns the meaning.

#pragma once

#include <cstdint>

#include "bfloat16.h"
#include "clones.h"

namespace fangyan {

struct Dropout {
  bool active;
  uint32_t low, high;  // the seed
  uint32_t threshold;
  float scale;
};

FANGYAN_INLINE uint32_t hash(uint32_t word) {
  word ^= word >> 16;
  word *= 0x7feb352du;
  word ^= word >> 15;
  word *= 0x846ca68bu;
  return word ^ (word >> 16);
}

// to (+)= D * from, of row `token`, in float32 or bfloat16: computed in float32, rounded once.
template <typename Element>
FANGYAN_INLINE void drop(const Dropout& d, int64_t token, const Element* __restrict from, int64_t columns,
                         bool accumulate, Element* __restrict to) {
  const uint32_t key = hash(hash(static_cast<uint32_t>(token) + d.low) ^ d.high), threshold = d.threshold;
  const float scale = d.scale;
  for (int32_t k = 0; k < static_cast<int32_t>(columns); ++k) {
    const float kept = hash(static_cast<uint32_t>(k) ^ key) >= threshold ? scale : 0.0f;
    narrow_to(to[k], widened(from[k]) * kept + (accumulate ? widened(to[k]) : 0.0f));
  }
}

}  // namespace fangyan
