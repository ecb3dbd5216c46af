// Vectors of optim8bit-inl.h, and what GCC makes poor code of, in the processor's own instructions.

namespace fangyan::optim8bit::FANGYAN_SIMD {

#if defined(FANGYAN_AVX512)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(4 * kLanes)));

template <class Vector>
FANGYAN_INLINE Vector load(const void* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class Vector>
FANGYAN_INLINE void store(void* to, const Vector& v) {
  std::memcpy(to, &v, sizeof v);
}

FANGYAN_INLINE Floats as_floats(const Ints& v) { return reinterpret_cast<Floats>(v); }
FANGYAN_INLINE Ints as_ints(const Floats& v) { return reinterpret_cast<Ints>(v); }
FANGYAN_INLINE Floats to_floats(const Ints& v) { return __builtin_convertvector(v, Floats); }
FANGYAN_INLINE Floats broadcast(float value) { return Floats{} + value; }
FANGYAN_INLINE Floats abs(const Floats& v) { return as_floats(as_ints(v) & INT32_MAX); }
FANGYAN_INLINE Ints abs(const Ints& v) { return v < 0 ? -v : v; }
FANGYAN_INLINE Halves min_u16(const Halves& a, const Halves& b) { return a < b ? a : b; }

// Returns table[index]; only the low bits of an index count.
template <class Vector>
FANGYAN_INLINE Vector lookup(const Vector& table, const Ints& index) {
#if defined(__clang__)
  Vector v;
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = table[index[lane] & (kLanes - 1)];
  return v;
#else
  return __builtin_shuffle(table, index);
#endif
}

// Returns the largest element, read as a float.
FANGYAN_INLINE float max_lane(Ints v) {
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
#pragma GCC unroll 4
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    const Ints other = lookup(v, lane ^ distance);
    v = v > other ? v : other;
  }
  return as_floats(v)[0];
}

// An element goes through a chain of 40 cycles and more. The vectors of a group go through it side by side: a processor
// does not look far enough ahead to find the next vector's instructions while one waits.
constexpr int kVectors = 4;
constexpr int kGroup = kVectors * kLanes;
#define FANGYAN_EACH _Pragma("GCC unroll 4") for (int k = 0; k < kVectors; ++k)

// Each level has
//   clamp_nonzero       moves 0 to where the segment selector puts it in the first segment, in units of `unit`
//   min                 of floats not below 0, whose order is that of their bits: more units compare integers
//   sqrt
//   store_codes         the codes of a group's positions; signed ones get the sign of `values`, and -1, which has no
//                       code, gets that of the next one
//   near_boundary_mask  kMaskBits bits per lane, of which one at least is set if the position is next to a boundary
#if defined(FANGYAN_AVX512)
FANGYAN_INLINE Floats clamp_nonzero(const Floats& v, float unit) { return v + kNonzero * unit; }

FANGYAN_INLINE Floats min(const Floats& a, const Floats& b) {
  return reinterpret_cast<Floats>(_mm512_min_epi32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}

FANGYAN_INLINE Floats sqrt(const Floats& v) {
  return reinterpret_cast<Floats>(_mm512_sqrt_ps(reinterpret_cast<__m512>(v)));
}

// Returns byte `which` of the four that each of a group's elements has.
FANGYAN_INLINE __m512i bytes_of(const void* group, char which) {
  const __m512i* v = static_cast<const __m512i*>(group);
  const __m256i first = _mm256_setr_epi8(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60,  //
                                         64, 68, 72, 76, 80, 84, 88, 92, 96, 100, 104, 108, 112, 116, 120, 124);
  const __m512i index = _mm512_broadcast_i64x4(_mm256_add_epi8(first, _mm256_set1_epi8(which)));
  const __m512i lower = _mm512_permutex2var_epi8(_mm512_loadu_si512(v), index, _mm512_loadu_si512(v + 1));
  const __m512i upper = _mm512_permutex2var_epi8(_mm512_loadu_si512(v + 2), index, _mm512_loadu_si512(v + 3));
  return _mm512_mask_blend_epi64(0xf0, lower, upper);
}

template <bool kSigned>
FANGYAN_INLINE void store_codes(const Ints* positions, const float* values, uint8_t* to) {
  __m512i bytes = bytes_of(positions, 2);
  if (kSigned) {
    const __m512i zero = _mm512_set1_epi8(kZeroCode);
    const __mmask64 negative = _mm512_movepi8_mask(bytes_of(values, 3));
    bytes = _mm512_mask_subs_epu8(_mm512_add_epi8(zero, bytes), negative, zero, bytes);
  }
  store(to, bytes);
}

constexpr int kMaskBits = 2;
FANGYAN_INLINE uint32_t near_boundary_mask(const Ints& v) {
  return _mm512_mask_cmplt_epu16_mask(0x55555555, reinterpret_cast<__m512i>(v), _mm512_set1_epi16(kPositionErrorFixed));
}
#elif defined(FANGYAN_AVX2)
FANGYAN_INLINE Floats clamp_nonzero(const Floats& v, float unit) {
  return reinterpret_cast<Floats>(
      _mm256_max_epi32(reinterpret_cast<__m256i>(v), reinterpret_cast<__m256i>(broadcast(kSmallest * unit))));
}

FANGYAN_INLINE Floats min(const Floats& a, const Floats& b) {
  return reinterpret_cast<Floats>(_mm256_min_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}

FANGYAN_INLINE Floats sqrt(const Floats& v) {
  return reinterpret_cast<Floats>(_mm256_sqrt_ps(reinterpret_cast<__m256>(v)));
}

FANGYAN_INLINE Ints load_codes(const uint8_t* codes) {
  // Half the price of the instruction made for it: only the shuffle takes a vector unit.
  const __m256i spread = _mm256_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1,  //
                                          4, -1, -1, -1, 5, -1, -1, -1, 6, -1, -1, -1, 7, -1, -1, -1);
  return reinterpret_cast<Ints>(_mm256_shuffle_epi8(_mm256_set1_epi64x(load<int64_t>(codes)), spread));
}

template <bool kSigned>
FANGYAN_INLINE void store_codes(const Ints* positions, const float* values, uint8_t* to) {
  const __m256i* n = reinterpret_cast<const __m256i*>(values);
  __m256i v[kVectors];
  for (int k = 0; k < kVectors; ++k) v[k] = _mm256_srli_epi32(reinterpret_cast<__m256i>(positions[k]), 16);
  __m256i bytes, first = _mm256_packs_epi32(v[0], v[1]), second = _mm256_packs_epi32(v[2], v[3]);
  if (kSigned) {
    const __m256i offset = _mm256_set1_epi16(kSignedOffsetBits);
    first = _mm256_sub_epi16(first, offset);
    second = _mm256_sub_epi16(second, offset);
    first = _mm256_sign_epi16(first, _mm256_packs_epi32(_mm256_loadu_si256(n), _mm256_loadu_si256(n + 1)));
    second = _mm256_sign_epi16(second, _mm256_packs_epi32(_mm256_loadu_si256(n + 2), _mm256_loadu_si256(n + 3)));
    const __m256i one = _mm256_set1_epi16(1);  // to [-128, 127], saturated
    bytes = _mm256_packs_epi16(_mm256_sub_epi16(first, one), _mm256_sub_epi16(second, one));
    bytes = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
  } else {
    bytes = _mm256_packus_epi16(first, second);
  }
  store(to, _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

constexpr int kMaskBits = 4;
FANGYAN_INLINE uint32_t near_boundary_mask(const Ints& v) {
  return _mm256_movemask_epi8(reinterpret_cast<__m256i>((v & 0xffff) < kPositionErrorFixed));
}
#else
FANGYAN_INLINE Floats clamp_nonzero(const Floats& v, float unit) {
  const Floats least = broadcast(kSmallest * unit);
  return v < least ? least : v;
}

FANGYAN_INLINE Floats min(const Floats& a, const Floats& b) { return a < b ? a : b; }

FANGYAN_INLINE Floats sqrt(const Floats& of) {
  Floats v = of;
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = std::sqrt(v[lane]);
  return v;
}

FANGYAN_INLINE Ints load_codes(const uint8_t* codes) {
  Ints v;
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = codes[lane];
  return v;
}

template <bool kSigned>
FANGYAN_INLINE void store_codes(const Ints* positions, const float* values, uint8_t* to) {
  for (int i = 0; i < kGroup; ++i) {
    const int32_t code = positions[i / kLanes][i % kLanes] >> 16 & 0xff;
    const int32_t with_sign = values[i] < 0.0f ? kZeroCode - std::min(code, kZeroCode) : kZeroCode + code;
    to[i] = static_cast<uint8_t>(kSigned ? with_sign : code);
  }
}

constexpr int kMaskBits = 1;
FANGYAN_INLINE uint32_t near_boundary_mask(const Ints& v) {
  uint32_t mask = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    mask |= static_cast<uint32_t>((v[lane] & 0xffff) < kPositionErrorFixed) << lane;
  return mask;
}
#endif

}  // namespace fangyan::optim8bit::FANGYAN_SIMD
