// The dynamic 8-bit map of bitsandbytes (Dettmers et al. 2022, arXiv 2110.02861) as arithmetic. A table of 256 floats
// costs one load per element; one line per decade costs a few instructions for eight or sixteen elements.
//
// Seven decades, 1e-6 to 1, hold 1, 2, 4, ... 64 codes of either sign (2, 4, ... 128 where there is no sign), evenly
// spaced; 0 and 1 have codes of their own. csrc/README.md derives the lines, csrc/tools/fit_dynamic_map.py computes the
// constants and proves their margins.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace fangyan::optim8bit {

constexpr int kCodes = 256;
constexpr int kZeroCode = 127;    // of the signed map
constexpr int kSegments = 8;      // a line for each decade, and one for 1 alone
constexpr int kTableFloats = 16;  // floats of the widest vector, and so of a table that it looks up

// The map's decades: the codes of one are evenly spaced between 0.1 and 1 of its end.
constexpr double kDecadeStart = 0.1;
constexpr double kDecadeSpan = 0.9;

// Adding it rounds to an integer, in the float's low bits: 1.5 * 2^23.
constexpr float kRounding = 12582912.0f;

// An encoder's positions among the codes have 16 fractional bits. Unsigned ones are integers; signed ones, which are at
// most 128, are floats of 128 and more, whose bits they are.
constexpr float kPositionUnit = 65536.0f;
constexpr float kSignedOffset = 128.0f;
constexpr int16_t kSignedOffsetBits = 0x4300;  // the upper ones

// Positions are right to within this, rounding included. Nearer to a boundary, the boundary itself decides.
constexpr float kPositionError = 1e-4f;
constexpr int kPositionErrorFixed = static_cast<int>(2 * kPositionError * kPositionUnit);

// The boundary between two decades is kJoin after the upper one's first code; a steeper line crosses there.
constexpr double kJoin = 0.2;
constexpr float kJoinSlope = 1.25f;

// Which segment a number x is in: the bits of prescale * x, as an integer, are nearly its logarithm, and are scaled,
// shifted and rounded to the segment's number, whose low bits count.
struct SegmentSelector {
  float prescale, scale, shift;
};
constexpr SegmentSelector kSignedSelector{.prescale = 0.2f, .scale = 3.588152e-8f, .shift = kRounding - 31};
constexpr SegmentSelector kUnsignedSelector{.prescale = 35.36f, .scale = 3.564493e-8f, .shift = kRounding - 33};

// Smaller numbers get the first segment's codes. Tables of eight floats are told that no number is below kSmallest;
// tables of sixteen have eight more segments for those, and kNonzero is added, as 0 has no logarithm.
constexpr float kSmallest = 2e-7f, kNonzero = 1e-14f;

struct DynamicMap {
  bool is_signed;
  float code[kCodes], boundary[kCodes - 1];          // ascending; halfway between neighbours
  alignas(64) uint8_t bytes[sizeof(float)][kCodes];  // of `code`, the lowest byte of each first
  // Lines that decode, by the low bits of a float's exponent, and those that encode, by segment.
  alignas(64) float decode_scale[kSegments], decode_shift[kSegments];
  alignas(64) float encode_scale[kTableFloats], encode_shift[kTableFloats], encode_join_shift[kTableFloats];

  // Sets everything from bitsandbytes' 256 floats; returns false if they are not a dynamic map.
  bool build(const float* values, bool with_sign) {
    is_signed = with_sign;
    std::memcpy(code, values, sizeof code);
    for (int i = 0; i + 1 < kCodes; ++i) boundary[i] = 0.5f * (code[i] + code[i + 1]);
    for (int i = 0; i < kCodes; ++i)
      for (size_t k = 0; k < sizeof(float); ++k) bytes[k][i] = reinterpret_cast<const uint8_t*>(&code[i])[k];
    for (int segment = 0; segment < kSegments; ++segment) {
      set_decoding(segment);
      set_encoding(segment);
    }
    const float step = 1.0f / (with_sign ? 128.0f : 255.0f);  // 0 and 1 are on the line of one exponent
    decode_scale[exponent_of(0)] = step;
    decode_shift[exponent_of(0)] = step * (with_sign ? -0.5f : -1.0f);
    for (int i = 0; i < kCodes; ++i)
      if (!(std::fabs(decoded(i) - code[i]) <= 2e-6f * std::fabs(code[i]))) return false;
    return true;
  }

  double decade_end(int segment) const { return std::pow(10.0, segment - 6); }
  double decade_codes(int segment) const { return std::ldexp(1.0, is_signed ? segment : segment + 1); }

  // Decoding takes the unsigned code + 1, or the signed one's distance from 0 plus a half: middles of steps, as codes
  // are. A decade begins at a power of two, so that the exponent tells it.
  void set_decoding(int segment) {
    const double end = decade_end(segment), codes = decade_codes(segment);
    const int exponent = exponent_of(segment + 1);
    decode_scale[exponent] = static_cast<float>(kDecadeSpan * end / codes);
    decode_shift[exponent] =
        static_cast<float>(end * (kDecadeStart - kDecadeSpan + (is_signed ? 0.0 : kDecadeSpan / 2 / codes)));
  }

  // The position of x in a decade that ends at `end` and whose first code is `first`, of `codes`:
  // first + codes (x / end - 0.1) / 0.9, or on the steeper line, where that is lower.
  void set_encoding(int segment) {
    const double end = decade_end(segment), codes = decade_codes(segment), first = codes - (is_signed ? 0 : 1);
    double scale = codes / (kDecadeSpan * end), shift = first - codes * kDecadeStart / kDecadeSpan;
    double join_shift = first - kJoinSlope * (first + kJoin);
    // The first segment and the last have two codes: the lowest two that there are, and 1 with the one before.
    const bool is_first = segment == 0;
    if (is_first || segment == kSegments - 1) {
      const int lowest = is_signed ? 0 : 1, upper = is_first ? lowest + 1 : is_signed ? 128 : 255;
      const double x = boundary[upper - 1 + (is_signed ? kZeroCode : 0)];
      scale = is_first ? 0.25 * (lowest + 1) / x : 100.0;
      shift = upper - scale * x;
      join_shift = kCodes;  // never lower
    }
    set_lines(segment, scale / selector().prescale, shift, join_shift);
    // Down to 0. Without a sign no number gets 0's code: where an average of squares became 0, its parameter would
    // leap by the other average over eps.
    set_lines(segment + kSegments, 0.0, is_signed ? 0.5 : 1.5, kCodes);
  }

  // Stores both lines in the units of positions, raised by kPositionError.
  void set_lines(int segment, double scale, double shift, double join_shift) {
    const double unit = is_signed ? 1.0 : kPositionUnit, raised = kPositionError + (is_signed ? kSignedOffset : 0.0);
    encode_scale[segment] = static_cast<float>(scale * unit);
    encode_shift[segment] = static_cast<float>((shift + raised) * unit);
    encode_join_shift[segment] = static_cast<float>((join_shift - (kJoinSlope - 1.0) * raised) * unit);
  }

  const SegmentSelector& selector() const { return is_signed ? kSignedSelector : kUnsignedSelector; }

  // A float's exponent has 127 added.
  int exponent_of(int segment) const { return (segment - is_signed + 127) & (kSegments - 1); }

  float decoded(int i) const {
    const int steps = i - kZeroCode;
    const float position = is_signed ? static_cast<float>(std::abs(steps)) + 0.5f : static_cast<float>(i + 1);
    const int exponent = (std::ilogb(position) + 127) & (kSegments - 1);
    const float value = std::fma(position, decode_scale[exponent], decode_shift[exponent]);
    return is_signed && steps < 0 ? -value : value;
  }

  // Returns the right code of a value near a boundary, given the code on one side. On the boundary it is the lower.
  uint8_t nearest_code(int i, float value) const {
    while (i > !is_signed && value <= boundary[i - 1]) --i;
    while (i + 1 < kCodes && value > boundary[i]) ++i;
    return static_cast<uint8_t>(i);
  }
};

}  // namespace fangyan::optim8bit
