// The dynamic 8-bit map of bitsandbytes (Dettmers et al. 2022, arXiv 2110.02861) as arithmetic: a lookup of one in
// 256 numbers costs a load an element, lines for its decades a few instructions for eight.
//
// Seven decades, 1e-6 to 1, hold 1, 2, 4, ... 64 codes of either sign (2, 4, ... 128 where there is no sign),
// evenly spaced; 0 and 1 have codes of their own. Counted from 0 (from -1 where there is no sign), the codes of a
// decade begin at a power of two: the exponent of a code, as a float, is its decade.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace fangyan {

constexpr int kCodes = 256;
constexpr int kZero = 127;  // the signed code of 0
// A line a decade; those of 0 and of 1, which do not meet, share one.
constexpr int kPieces = 8;
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer, its low bits
// The lines find a place among the codes to within this, rounding included; nearer to a middle, the middle decides.
constexpr float kNear = 1e-4f;
// Smaller numbers are taken for these. Their signed code is that of 0; without a sign it is the first above: an
// average of squares that became 0 would have its number leap by the other average over eps.
constexpr float kLeastSigned = 8e-8f, kLeast = 1.7e-7f;

struct DynamicMap {
  bool is_signed;
  float code[kCodes], middle[kCodes - 1];  // ascending; halfway between neighbours
  float decode_scale[kPieces], decode_shift[kPieces];  // by the low bits of a float's exponent
  float threshold[kPieces];  // the middle above each piece
  float encode_scale[kPieces], encode_shift[kPieces], encode_last[kPieces];

  // False if the numbers are no dynamic map.
  bool build(const float* numbers, bool with_sign) {
    is_signed = with_sign;
    std::memcpy(code, numbers, sizeof code);
    for (int i = 0; i + 1 < kCodes; ++i) middle[i] = 0.5f * (code[i] + code[i + 1]);
    const double top = with_sign ? 128.0 : 255.0, shift = 0.5 - kNear;
    for (int piece = 0; piece < kPieces; ++piece) {
      const double decade = std::pow(10.0, piece - 7), first = std::ldexp(1.0, piece);
      const double codes = with_sign ? first / 2 : first, origin = with_sign ? 0.0 : 1.0;
      // Decoding takes the code from -1, or the signed one's size plus a half: middles of steps, as codes are.
      const int exponent = exponent_of(piece);
      decode_scale[exponent] = static_cast<float>(0.9 * decade / codes);
      decode_shift[exponent] = static_cast<float>(decade * (with_sign ? -0.8 : -0.8 + 0.45 / codes));
      encode_scale[piece] = static_cast<float>(codes / (0.9 * decade));
      encode_shift[piece] = static_cast<float>(codes * 8.0 / 9.0 - origin - shift);
      encode_last[piece] = kMagic + static_cast<float>(2 * codes - 1 - origin);
      threshold[piece] = with_sign ? middle[kZero + (1 << piece) - 1] : middle[(2 << piece) - 2];
    }
    decode_scale[exponent_of(0)] = static_cast<float>(1 / top);
    decode_shift[exponent_of(0)] = static_cast<float>(1 / top) * (with_sign ? -0.5f : -1.0f);
    encode_scale[0] = static_cast<float>(top);
    // What lies on the first middle, and next to it, is taken for the code above, and then corrected.
    encode_shift[0] = static_cast<float>(0.5 - top * threshold[0] + 5e-7);
    encode_last[0] = kMagic + static_cast<float>(top);
    for (int i = 0; i < kCodes; ++i)
      if (!(std::fabs(decoded(i) - code[i]) <= 2e-6f * std::fabs(code[i]))) return false;
    return true;
  }

  // A float's exponent has 127 added.
  int exponent_of(int piece) const { return (piece - is_signed + 127) & (kPieces - 1); }

  float decoded(int i) const {
    const int steps = i - kZero;
    const float place = is_signed ? static_cast<float>(std::abs(steps)) + 0.5f : static_cast<float>(i + 1);
    const int exponent = (std::ilogb(place) + 127) & (kPieces - 1);
    const float value = std::fma(place, decode_scale[exponent], decode_shift[exponent]);
    return is_signed && steps < 0 ? -value : value;
  }

  // The right code of a value next to a middle, from one beside it. Of equally near codes it is the lower.
  uint8_t corrected(int i, float value) const {
    while (i > !is_signed && value <= middle[i - 1]) --i;
    while (i + 1 < kCodes && value > middle[i]) ++i;
    return static_cast<uint8_t>(i);
  }
};

}  // namespace fangyan
