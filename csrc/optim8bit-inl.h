// The kernels of optim8bit.h, compiled once per instruction set.

#include "optim8bit_codec-inl.h"

namespace fangyan::optim8bit::FANGYAN_SIMD {

// Returns a block's elements as floats: in place, or in `buffer`, with zeros to its end.
FANGYAN_INLINE const float* read(const void* from, Dtype dtype, int64_t start, int64_t size, float* buffer) {
  if (dtype == Dtype::kFloat && size == kBlock) return static_cast<const float*>(from) + start;
  if (dtype == Dtype::kFloat) {
    std::memcpy(buffer, static_cast<const float*>(from) + start, size * sizeof(float));
  } else if (dtype == Dtype::kBFloat16) {
    const uint16_t* p = static_cast<const uint16_t*>(from) + start;
    for (int64_t i = 0; i < size; ++i) buffer[i] = to_float(p[i]);
  } else {
    const c10::Half* p = static_cast<const c10::Half*>(from) + start;
    for (int64_t i = 0; i < size; ++i) buffer[i] = static_cast<float>(p[i]);
  }
  std::fill(buffer + size, buffer + kBlock, 0.0f);
  return buffer;
}

FANGYAN_INLINE void write(void* to, Dtype dtype, int64_t start, int64_t size, const float* values) {
  if (dtype == Dtype::kFloat) {
    std::memcpy(static_cast<float*>(to) + start, values, size * sizeof(float));
  } else if (dtype == Dtype::kBFloat16) {
    uint16_t* p = static_cast<uint16_t*>(to) + start;
    for (int64_t i = 0; i < size; ++i) p[i] = number_to_bfloat16(values[i]);
  } else {
    c10::Half* p = static_cast<c10::Half*>(to) + start;
    for (int64_t i = 0; i < size; ++i) p[i] = c10::Half(values[i]);
  }
}

// A state of a block: decoded, and updated into `out`.
template <bool kSigned, bool kCoded>
struct Average {
  const uint8_t* codes;
  const float* floats;
  float* out;
  Decoder decoder;
  Floats betas, gradient_factors;
  Ints max_bits;  // of the absolute values, among which a NaN's are the largest

  FANGYAN_INLINE_MEMBER Average(const State& state, int64_t block, const void* from, float beta, float gradient_factor,
                                float* to)
      : codes(static_cast<const uint8_t*>(from)), floats(static_cast<const float*>(from)), out(to) {
    if (kCoded) decoder.begin(*state.map, beta * state.scales[block]);
    betas = broadcast(beta);
    gradient_factors = broadcast(gradient_factor);
    max_bits = Ints{};
  }

  // beta * old + (1 - beta) * gradient, or its square, for a group.
  template <bool kSquared>
  FANGYAN_INLINE_MEMBER void update(int64_t i, const float* gradient) {
    Floats values[kVectors];
    if (kCoded) decoder.template decode<kSigned>(codes + i, values);
    FANGYAN_EACH {
      const Floats g = load<Floats>(gradient + i + k * kLanes);
      if (!kCoded) values[k] = betas * load<Floats>(floats + i + k * kLanes);
      values[k] = (kSquared ? g * g : g) * gradient_factors + values[k];
      const Ints bits = as_ints(kSigned ? abs(values[k]) : values[k]);
      max_bits = max_bits > bits ? max_bits : bits;
      store(out + i + k * kLanes, values[k]);
    }
  }
};

// A block in the course of a step.
struct Block {
  int64_t index, size;
  const void* old[kMaxStates];  // codes or floats, kBlock of them
  alignas(64) float averages[kMaxStates][kBlock];
  float scales[kMaxStates];
};

// Updates a block's averages; returns whether all are finite. Lion's averages[1] is what the step takes the sign of, an
// average with a beta of its own.
template <Algorithm kAlgorithm, bool kCoded>
FANGYAN_INLINE bool update_averages(const Arguments& s, const float* gradient, Block& b) {
  constexpr bool kIsLion = kAlgorithm == Algorithm::kLion, kHasThird = kAlgorithm == Algorithm::kAdemamix;
  constexpr int kSecond = kIsLion ? 0 : 1, kThird = kHasThird ? 2 : 0;
  Average<true, kCoded> first(s.states[0], b.index, b.old[0], kIsLion ? s.beta2 : s.beta1,
                              kIsLion ? s.gradient_factor2 : s.gradient_factor1, b.averages[0]);
  Average<kIsLion, kCoded> second(s.states[kSecond], b.index, b.old[kSecond], kIsLion ? s.beta1 : s.beta2,
                                  kIsLion ? s.gradient_factor1 : s.gradient_factor2, b.averages[1]);
  Average<true, kCoded> third(s.states[kThird], b.index, b.old[kThird], s.beta3, s.gradient_factor3, b.averages[2]);
  for (int64_t i = 0; i < kBlock; i += kGroup) {
    first.template update<false>(i, gradient);
    second.template update<!kIsLion>(i, gradient);
    if (kHasThird) third.template update<false>(i, gradient);
  }
  b.scales[0] = max_lane(first.max_bits);
  b.scales[1] = max_lane(second.max_bits);
  b.scales[2] = kHasThird ? max_lane(third.max_bits) : 0.0f;
  return std::isfinite(b.scales[0]) && std::isfinite(b.scales[1]) && std::isfinite(b.scales[2]);
}

// Updates a block's parameters and encodes its averages.
template <Algorithm kAlgorithm, bool kCoded>
FANGYAN_INLINE void step_and_encode(const Arguments& s, const float* from, float* to, uint8_t* const* codes,
                                    const Block& b) {
  constexpr bool kIsLion = kAlgorithm == Algorithm::kLion, kHasThird = kAlgorithm == Algorithm::kAdemamix;
  const Floats decay = broadcast(s.decay), lr = broadcast(s.lr), eps = broadcast(s.eps), alpha = broadcast(s.alpha),
               root_correction = broadcast(s.root_correction), mix_correction = broadcast(s.mix_correction);
  const Encoder<true> first(kCoded ? *s.states[0].map : kNoMap, b.scales[0]);
  const Encoder<false> second(kCoded && !kIsLion ? *s.states[1].map : kNoMap, b.scales[1]);
  const Encoder<true> third(kCoded && kHasThird ? *s.states[2].map : kNoMap, b.scales[2]);
  uint32_t groups = 0;  // a bit for each with an element next to a boundary
  for (int64_t start = 0; start < kBlock; start += kGroup) {
    Floats step[kVectors];
    FANGYAN_EACH {
      const int64_t i = start + k * kLanes;
      const Floats m = load<Floats>(b.averages[0] + i), v = load<Floats>(b.averages[1] + i);
      if (kIsLion) {
        step[k] = to_floats((v < 0.0f) - (v > 0.0f)) * lr;
      } else {
        step[k] = kHasThird ? m * mix_correction + load<Floats>(b.averages[2] + i) * alpha : m;
        step[k] = step[k] / (sqrt(v) * root_correction + eps);
      }
    }
    FANGYAN_EACH {
      const int64_t i = start + k * kLanes;
      store(to + i, decay * load<Floats>(from + i) - step[k]);
    }
    if (kCoded) {
      Halves least = first.encode(b.averages[0] + start, codes[0] + start);
      if (!kIsLion) least = min_u16(least, second.encode(b.averages[1] + start, codes[1] + start));
      if (kHasThird) least = min_u16(least, third.encode(b.averages[2] + start, codes[2] + start));
      groups |= static_cast<uint32_t>(near_boundary_mask(reinterpret_cast<Ints>(least)) != 0) << start / kGroup;
    }
  }
  if (__builtin_expect(groups != 0, 0)) {
    correct_codes<true>(*s.states[0].map, b.scales[0], groups, b.averages[0], codes[0]);
    if (!kIsLion) correct_codes<false>(*s.states[1].map, b.scales[1], groups, b.averages[1], codes[1]);
    if (kHasThird) correct_codes<true>(*s.states[2].map, b.scales[2], groups, b.averages[2], codes[2]);
  }
}

// Returns a state's block where it is in memory, or a copy with zeros to its end.
FANGYAN_INLINE const void* whole_block(const State& state, int64_t index, int64_t size, void* buffer) {
  const int64_t width = state.codes ? 1 : sizeof(float);
  const char* from =
      state.codes ? reinterpret_cast<const char*>(state.codes) : reinterpret_cast<const char*>(state.floats);
  from += index * kBlock * width;
  if (size == kBlock) return from;
  std::memset(buffer, state.codes && state.map->is_signed ? kZeroCode : 0, kBlock * width);
  return std::memcpy(buffer, from, size * width);
}

// Zeroes the gradient of elements whose gradient or averages are not finite, marks them, and updates the averages
// again. Returns how many they are.
template <Algorithm kAlgorithm, bool kCoded>
static int64_t update_finite_averages(const Arguments& s, const float* gradient, Block& b, bool* is_skipped) {
  float finite[kBlock];
  int64_t num_skipped = 0;
  for (int64_t i = 0; i < kBlock; ++i) {
    is_skipped[i] = !std::isfinite(b.averages[0][i]) || !std::isfinite(b.averages[1][i]);
    finite[i] = is_skipped[i] ? 0.0f : gradient[i];
    num_skipped += is_skipped[i];
  }
  update_averages<kAlgorithm, kCoded>(s, finite, b);
  return num_skipped;
}

template <Algorithm kAlgorithm, bool kCoded>
FANGYAN_INLINE int64_t step_all(const Arguments& s, int64_t begin, int64_t end) {
  alignas(64) float parameter[kBlock], gradient[kBlock], buffers[kMaxStates][kBlock];
  uint8_t last_codes[kMaxStates][kBlock];
  constexpr int kStates = kAlgorithm == Algorithm::kLion ? 1 : kAlgorithm == Algorithm::kAdam ? 2 : 3;
  Block b;
  int64_t num_skipped = 0;
  for (b.index = begin; b.index < end; ++b.index) {
    const int64_t start = b.index * kBlock;
    b.size = std::min(kBlock, s.size - start);
    const float* g = read(s.gradient, s.gradient_dtype, start, b.size, gradient);
    const float* from = read(s.parameter, s.parameter_dtype, start, b.size, parameter);
    float* to = from == parameter ? parameter : static_cast<float*>(s.parameter) + start;
    uint8_t* codes[kMaxStates] = {};
    for (int k = 0; k < kStates; ++k) {
      b.old[k] = whole_block(s.states[k], b.index, b.size, buffers[k]);
      if (kCoded) codes[k] = b.size < kBlock ? last_codes[k] : s.states[k].codes + start;
    }
    float kept[kBlock];
    bool is_skipped[kBlock];
    const bool all_finite = update_averages<kAlgorithm, kCoded>(s, g, b);
    if (__builtin_expect(!all_finite, 0)) {
      num_skipped += update_finite_averages<kAlgorithm, kCoded>(s, g, b, is_skipped);
      std::memcpy(kept, from, sizeof kept);
    }
    step_and_encode<kAlgorithm, kCoded>(s, from, to, codes, b);
    if (__builtin_expect(!all_finite, 0))
      for (int64_t i = 0; i < kBlock; ++i) to[i] = is_skipped[i] ? kept[i] : to[i];
    if (to == parameter) write(s.parameter, s.parameter_dtype, start, b.size, to);
    if (s.bf16_copy) write(s.bf16_copy, Dtype::kBFloat16, start, b.size, to);
    for (int k = 0; k < kStates; ++k) {
      if (kCoded) {
        s.states[k].scales[b.index] = b.scales[k];
        if (b.size < kBlock) std::memcpy(s.states[k].codes + start, codes[k], b.size);
      } else {
        std::memcpy(s.states[k].floats + start, b.averages[k], b.size * sizeof(float));
      }
    }
  }
  return num_skipped;
}

template <Algorithm kAlgorithm>
static int64_t step_of(const Arguments& s, int64_t begin, int64_t end) {
  return s.states[0].codes ? step_all<kAlgorithm, true>(s, begin, end) : step_all<kAlgorithm, false>(s, begin, end);
}

// Computes the blocks [begin, end) of a step; returns the number of elements skipped because their gradient was not
// finite.
static int64_t step_blocks(const Arguments& s, int64_t begin, int64_t end) {
  switch (s.algorithm) {
    case Algorithm::kAdam:
      return step_of<Algorithm::kAdam>(s, begin, end);
    case Algorithm::kLion:
      return step_of<Algorithm::kLion>(s, begin, end);
    case Algorithm::kAdemamix:
      return step_of<Algorithm::kAdemamix>(s, begin, end);
  }
  return 0;
}

// Returns the sum of squares of float32 or bfloat16, in independent sums of double precision.
template <class T>
static double squares(const T* from, int64_t size) {
  constexpr int64_t kSums = 16;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= size; i += kSums)
    for (int64_t j = 0; j < kSums; ++j) {
      const double x = to_float(from[i + j]);
      sums[j] += x * x;
    }
  for (int64_t j = 0; i + j < size; ++j) {
    const double x = to_float(from[i + j]);
    sums[j] += x * x;
  }
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace fangyan::optim8bit::FANGYAN_SIMD

#undef FANGYAN_EACH
