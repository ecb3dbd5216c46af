// bfloat16 as its bits, and float32 as itself.

#pragma once

#include <bit>
#include <cstdint>

#include "clones.h"

namespace fangyan {

FANGYAN_INLINE float widened(float x) { return x; }
FANGYAN_INLINE float widened(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

FANGYAN_INLINE void narrow_to(float& to, float x) { to = x; }

// To the nearest, ties to even; a NaN stays one.
FANGYAN_INLINE void narrow_to(uint16_t& to, float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

}  // namespace fangyan
