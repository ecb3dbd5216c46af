// Decodes and encodes 8-bit states, a group of kGroup elements at a time; csrc/README.md derives the arithmetic.

#include "optim8bit_vectors-inl.h"

namespace fangyan::optim8bit::FANGYAN_SIMD {

// Decodes a block's elements, times a factor.
#if defined(FANGYAN_AVX512)
// Looks up each of an element's four bytes for 64 elements at once, in two tables of 128.
struct Decoder {
  const uint8_t (*bytes)[kCodes];
  Floats factors;

  FANGYAN_INLINE_MEMBER void begin(const DynamicMap& map, float factor) {
    bytes = map.bytes;
    factors = broadcast(factor);
  }

  FANGYAN_INLINE_MEMBER __m512i lookup_bytes(int which, __m512i codes, __mmask64 is_upper) const {
    const __m512i* t = reinterpret_cast<const __m512i*>(bytes[which]);
    return _mm512_mask_blend_epi8(is_upper, _mm512_permutex2var_epi8(t[0], codes, t[1]),
                                  _mm512_permutex2var_epi8(t[2], codes, t[3]));
  }

  template <bool kSigned>
  FANGYAN_INLINE_MEMBER void decode(const uint8_t* codes, Floats* values) const {
    // Unpacking takes four codes of each quarter for a vector.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i ordered = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(codes));
    const __mmask64 is_upper = _mm512_movepi8_mask(ordered);
    __m512i b[4];
    for (int k = 0; k < 4; ++k) b[k] = lookup_bytes(k, ordered, is_upper);
    const __m512i lower[2] = {_mm512_unpacklo_epi8(b[0], b[1]), _mm512_unpackhi_epi8(b[0], b[1])};
    const __m512i upper[2] = {_mm512_unpacklo_epi8(b[2], b[3]), _mm512_unpackhi_epi8(b[2], b[3])};
    for (int k = 0; k < 2; ++k) {
      values[2 * k] = reinterpret_cast<Floats>(_mm512_unpacklo_epi16(lower[k], upper[k])) * factors;
      values[2 * k + 1] = reinterpret_cast<Floats>(_mm512_unpackhi_epi16(lower[k], upper[k])) * factors;
    }
  }
};
#else
struct Decoder {
  Floats scales, shifts;
  bool is_denormal;

  FANGYAN_INLINE_MEMBER void begin(const DynamicMap& map, float factor) {
    // The lowest decade's line is below a float's least normal number for a factor below 3e-32.
    is_denormal = factor != 0.0f && factor < 1e-30f;
    scales = load<Floats>(map.decode_scale) * factor;
    shifts = load<Floats>(map.decode_shift) * factor;
  }

  template <bool kSigned>
  FANGYAN_INLINE_MEMBER void decode(const uint8_t* codes, Floats* values) const {
    Ints code[kVectors], exponent[kVectors];
    FANGYAN_EACH code[k] = load_codes(codes + k * kLanes) - (kSigned ? kZeroCode : -1);
    FANGYAN_EACH {
      values[k] = kSigned ? to_floats(abs(code[k])) + 0.5f : to_floats(code[k]);
      exponent[k] = as_ints(values[k]) >> 23;
    }
    FANGYAN_EACH values[k] = values[k] * lookup(scales, exponent[k]) + lookup(shifts, exponent[k]);
    if (kSigned) FANGYAN_EACH values[k] = as_floats(as_ints(values[k]) ^ (code[k] & INT32_MIN));
    // Squares are decoded to no less than 0, whatever such a line rounds to: their root is taken.
    if (!kSigned && __builtin_expect(is_denormal, 0))
      FANGYAN_EACH values[k] = values[k] < 0.0f ? Floats{} : values[k];
  }
};
#endif

// Encodes a block's elements.
template <bool kSigned>
struct Encoder {
  static constexpr SegmentSelector kSelector = kSigned ? kSignedSelector : kUnsignedSelector;
  const DynamicMap& map;
  Floats scales, shifts, join_shifts;
  float inverse, prescale;

  // The reciprocal of a smaller scale would be infinite; such elements are far below any eps.
  FANGYAN_INLINE_MEMBER Encoder(const DynamicMap& of, float scale)
      : map(of),
        scales(load<Floats>(of.encode_scale)),
        shifts(load<Floats>(of.encode_shift)),
        join_shifts(load<Floats>(of.encode_join_shift)),
        inverse(1.0f / std::max(scale, 1e-36f)),
        prescale(kSelector.prescale * inverse) {}

  // Computes positions among the codes, with 16 fractional bits.
  FANGYAN_INLINE_MEMBER void find_positions(const float* values, Ints* positions) const {
    Floats x[kVectors], join_shift[kVectors];
    Ints segment[kVectors];
    FANGYAN_EACH {
      const Floats value = load<Floats>(values + k * kLanes);
      x[k] = clamp_nonzero((kSigned ? abs(value) : value) * prescale, kSelector.prescale);
    }
    FANGYAN_EACH segment[k] = as_ints(to_floats(as_ints(x[k])) * kSelector.scale + kSelector.shift);
    FANGYAN_EACH {
      x[k] = x[k] * lookup(scales, segment[k]) + lookup(shifts, segment[k]);
      join_shift[k] = lookup(join_shifts, segment[k]);
    }
    FANGYAN_EACH x[k] = min(x[k], x[k] * kJoinSlope + join_shift[k]);
    FANGYAN_EACH positions[k] = kSigned ? as_ints(x[k]) : __builtin_convertvector(x[k], Ints);
  }

  // Stores codes and returns the least fractional parts of a group's positions: where near_boundary_mask() of them is
  // not 0, correct_codes() has to look.
  FANGYAN_INLINE_MEMBER Halves encode(const float* values, uint8_t* codes) const {
    Ints positions[kVectors];
    find_positions(values, positions);
    store_codes<kSigned>(positions, values, codes);
    Halves least = reinterpret_cast<Halves>(positions[0]);
#pragma GCC unroll 4
    for (int k = 1; k < kVectors; ++k) least = min_u16(least, reinterpret_cast<Halves>(positions[k]));
    return least;
  }
};

// Corrects the codes of elements next to a boundary, in the groups whose bit is set. Not inlined: it is seldom called
// and would take registers.
template <bool kSigned>
static __attribute__((noinline)) void correct_codes(const DynamicMap& map, float scale, uint32_t groups,
                                                    const float* values, uint8_t* codes) {
  const Encoder<kSigned> encoder(map, scale);
  for (; groups; groups &= groups - 1) {
    const int start = __builtin_ctz(groups) * kGroup;
    Ints positions[kVectors];
    encoder.find_positions(values + start, positions);
    for (int k = 0; k < kVectors; ++k)
      for (uint32_t mask = near_boundary_mask(positions[k]); mask; mask &= mask - 1) {
        const int i = start + k * kLanes + __builtin_ctz(mask) / kMaskBits;
        codes[i] = map.nearest_code(codes[i], values[i] * encoder.inverse);
      }
  }
}

}  // namespace fangyan::optim8bit::FANGYAN_SIMD
