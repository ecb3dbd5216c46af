// exp, tanh, and reductions over a row, as plain loops. Sums are kept in independent lanes, so that compilers vectorize
// them without -ffast-math.

#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu_dispatch.h"

namespace fangyan::softmax {

// Independent sums or maxima: enough to hide their latency in vectors of 4 to 16 floats.
constexpr int64_t kLanes = 32;
// Elements summed before they are added to the total. The rounding error grows with this number and with the number
// of such sums, not with their product.
constexpr int64_t kSumBlock = 1024;

// Returns e^x for x <= 0, within 1.1 units in the last place and at least 1e-38. Cody-Waite reduction to
// |r| <= log(2) / 2, then a Taylor polynomial; 2^n comes from the bits of the rounded n.
FANGYAN_INLINE float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>((std::bit_cast<int32_t>(shifted) + 127) << 23);
}

// Returns tanh(x) within 2.1 units in the last place. Near 0, where the quotient would cancel, it uses the series.
FANGYAN_INLINE float fast_tanh(float x) {
  const float a = std::fabs(x), s = x * x;
  const float near = x * (1.0f + s * (-1.0f / 3 + s * (2.0f / 15 + s * (-17.0f / 315 + s * (62.0f / 2835)))));
  const float e = exp_nonpositive(-2.0f * a);
  const float far = std::copysign((1.0f - e) / (1.0f + e), x);
  return a < 0.3f ? near : far;
}

FANGYAN_INLINE float row_max(const float* row, int64_t size) {
  float lane[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) lane[i] = -std::numeric_limits<float>::infinity();
  int64_t c = 0;
  for (; c + kLanes <= size; c += kLanes)
    for (int64_t i = 0; i < kLanes; ++i) lane[i] = row[c + i] > lane[i] ? row[c + i] : lane[i];
  for (int64_t i = 0; c + i < size; ++i) lane[i] = row[c + i] > lane[i] ? row[c + i] : lane[i];
  return *std::max_element(lane, lane + kLanes);
}

// Returns the sum of term(i) for 0 <= i < size, in kLanes sums per block.
template <class Term>
FANGYAN_INLINE float row_sum(int64_t size, const Term& term) {
  float total = 0.0f;
  for (int64_t start = 0; start < size; start += kSumBlock) {
    const int64_t end = std::min(start + kSumBlock, size);
    float lane[kLanes] = {};
    int64_t c = start;
    for (; c + kLanes <= end; c += kLanes)
      for (int64_t i = 0; i < kLanes; ++i) lane[i] += term(c + i);
    for (int64_t i = 0; c + i < end; ++i) lane[i] += term(c + i);
    for (int64_t width = kLanes / 2; width > 0; width /= 2)
      for (int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
    total += lane[0];
  }
  return total;
}

}  // namespace fangyan::softmax
