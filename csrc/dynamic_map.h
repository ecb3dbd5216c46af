// The dynamic 8-bit map of bitsandbytes (Dettmers et al. 2022, arXiv 2110.02861) as arithmetic: a lookup of one in
// 256 numbers costs a load an element, lines for its decades a few instructions for eight or sixteen.
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
constexpr int kPieces = 8;  // a line for each decade, and one for 1 alone
constexpr int kWidest = 16;  // floats of the widest vector, and so of a table that it looks up
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer, its low bits
// An encoder's places among the codes have 16 bits after the point: unsigned ones as integers, signed ones, which are
// at most 128, as floats from 128 on, whose bits they are.
constexpr float kFixed = 65536.0f;
constexpr float kOffset = 128.0f;
constexpr int16_t kOffsetBits = 0x4300;  // the upper ones
// They are right to within this, rounding included; nearer to a middle, the middle decides.
constexpr float kNear = 1e-4f;
constexpr float kSteeper = 1.25f;  // see encode_scale
constexpr int kNearFixed = static_cast<int>(2 * kNear * kFixed);

// Which piece a number is in: its bits, as an integer, are nearly its logarithm, and a line of them is rounded. That
// need not be exact, as up to the end of a decade from its last code on the next one's line does as well. With
// `stretch`, which moves the wrinkles of such a logarithm, one line parts all pieces within those bounds, the
// tightest by a thousandth of an octave; `stretch`, `scale` and the integer were found by search.
struct Pieces {
  float stretch, scale, shift;
};
// Numbers down to 0 get the first piece's codes: a vector of eight floats looks up that piece for them, being told they
// are no smaller than kSmall; one of sixteen has eight pieces more for them, once kTiny is added.
constexpr float kSmall = 2e-7f, kTiny = 1e-14f;
constexpr Pieces kSignedPieces{0.2f, 3.588167e-8f, kMagic - 31};
constexpr Pieces kUnsignedPieces{35.36f, 3.564494e-8f, kMagic - 33};

struct DynamicMap {
  bool is_signed;
  float code[kCodes], middle[kCodes - 1];  // ascending; halfway between neighbours
  alignas(64) uint8_t bytes[sizeof(float)][kCodes];  // of the codes' numbers, the lowest bytes of all first
  alignas(64) float decode_scale[kPieces], decode_shift[kPieces];  // by the low bits of a float's exponent
  // A number's place is on a line. In a decade of n codes, the first of which is n, it is
  // 8n/9 + x n / (0.9 * the decade's end), and the code its integer part. But the middle to the code before is not on
  // that grid: it is at n + 0.2, where a steeper line, kSteeper place - 0.28125 shift - 0.25, is at n. The code is the
  // integer part of the lower of both. Without a sign the first is n - 1, and 0.28125 takes the place of 0.25.
  alignas(64) float encode_scale[kWidest], encode_shift[kWidest], encode_steeper[kWidest];

  // False if the numbers are no dynamic map.
  bool build(const float* numbers, bool with_sign) {
    is_signed = with_sign;
    std::memcpy(code, numbers, sizeof code);
    for (int i = 0; i + 1 < kCodes; ++i) middle[i] = 0.5f * (code[i] + code[i + 1]);
    for (int i = 0; i < kCodes; ++i)
      for (size_t k = 0; k < sizeof(float); ++k) bytes[k][i] = reinterpret_cast<const uint8_t*>(&code[i])[k];
    const double top = with_sign ? 128.0 : 255.0, origin = with_sign ? 0.0 : 1.0;
    const Pieces& pieces = with_sign ? kSignedPieces : kUnsignedPieces;
    for (int piece = 0; piece < kPieces; ++piece) {
      const double end = std::pow(10.0, piece - 6), codes = std::ldexp(1.0, with_sign ? piece : piece + 1);
      // Decoding takes the code from -1, or the signed one's size plus a half: middles of steps, as codes are.
      const int exponent = exponent_of(piece + 1);
      decode_scale[exponent] = static_cast<float>(0.9 * end / codes);
      decode_shift[exponent] = static_cast<float>(end * (with_sign ? -0.8 : -0.8 + 0.45 / codes));
      double scale = codes / (0.9 * end), shift = codes * 8 / 9 - origin;
      double steeper = -0.28125 * shift - (with_sign ? 0.25 : 0.28125);
      // The first piece and the last have two codes: the lowest that there are, and 1 with the one before.
      const bool is_first = piece == 0;
      if (is_first || piece == kPieces - 1) {
        const int lowest = with_sign ? 0 : 1, upper = is_first ? lowest + 1 : static_cast<int>(top);
        const double at = middle[upper - 1 + (with_sign ? kZero : 0)];
        scale = is_first ? 0.25 * (lowest + 1) / at : 100.0;
        shift = upper - scale * at;
        steeper = kCodes;
      }
      set_line(piece, scale / pieces.stretch, shift, steeper);
      // Down to 0. Without a sign no number gets its code: an average of squares that became 0 would have its number
      // leap by the other average over eps.
      set_line(piece + kPieces, 0.0, with_sign ? 0.5 : 1.5, kCodes);
    }
    decode_scale[exponent_of(0)] = static_cast<float>(1 / top);
    decode_shift[exponent_of(0)] = static_cast<float>(1 / top) * (with_sign ? -0.5f : -1.0f);
    for (int i = 0; i < kCodes; ++i)
      if (!(std::fabs(decoded(i) - code[i]) <= 2e-6f * std::fabs(code[i]))) return false;
    return true;
  }

  // Both lines of a piece: of places, moved by kNear, as kFixed says.
  void set_line(int piece, double scale, double shift, double steeper) {
    const double unit = is_signed ? 1.0 : kFixed, offset = is_signed ? kOffset : 0.0;
    encode_scale[piece] = static_cast<float>(scale * unit);
    encode_shift[piece] = static_cast<float>((shift + kNear + offset) * unit);
    encode_steeper[piece] = static_cast<float>((steeper - (kSteeper - 1.0) * (kNear + offset)) * unit);
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
