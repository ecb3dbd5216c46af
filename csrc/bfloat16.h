// bfloat16 as its bits, and float32 as itself, so that one template serves both.

#pragma once

#include <bit>
#include <cstdint>

#include "cpu_dispatch.h"

namespace fangyan {

FANGYAN_INLINE float to_float(float x) { return x; }
FANGYAN_INLINE float to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Rounds to nearest, ties to even. A NaN may become infinite.
FANGYAN_INLINE uint16_t number_to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Rounds to nearest, ties to even; a NaN stays a NaN.
FANGYAN_INLINE uint16_t to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return is_nan ? static_cast<uint16_t>((bits >> 16) | 0x40u) : number_to_bfloat16(x);
}

FANGYAN_INLINE void assign(float& to, float x) { to = x; }
FANGYAN_INLINE void assign(uint16_t& to, float x) { to = to_bfloat16(x); }

}  // namespace fangyan
