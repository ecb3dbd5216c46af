// The softmax of a row of logits, its loss, and the gradient that takes the row's place; the formula is in
// linear_cross_entropy.cpp.

#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "clones.h"

namespace fangyan {

// Independent sums or maxima: enough to hide their latency in vectors of 4 to 16 numbers.
constexpr int64_t kLanes = 32;
// Numbers summed before they are added to the total: the rounding error grows with the block alone.
constexpr int64_t kBlock = 1024;

struct Options {
  int64_t ignore_index;
  float smoothing, z_loss, softcap, filter;
};

// A chunk of labelled tokens: logits in, gradients of the logits out.
struct Chunk {
  float* logits_RC;
  const float* bias_C;          // or null
  const float* class_weight_C;  // or null
  const int64_t* token_R;       // which of the T tokens
  const int64_t* target_T;
  const float* token_weight_T;  // or null
  int64_t classes;
  float class_weight_sum;
  float scale;  // 1 / divisor
  bool gradients, predict;
  Options options;
  float* loss_T;
  int64_t* prediction_T;
  uint8_t* correct_T;
};

// e^x for x <= 0, within 1.1 units in the last place; at least 1e-38. Cody-Waite reduction to
// |r| <= log(2) / 2 and a Taylor polynomial; 2^n comes from the bits of the rounded n.
FANGYAN_INLINE float exp_negative(float x) {
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

// tanh within 2.1 units in the last place; by its series near 0, where the quotient would cancel.
FANGYAN_INLINE float tanh_of(float x) {
  const float a = std::fabs(x), s = x * x;
  const float near = x * (1.0f + s * (-1.0f / 3 + s * (2.0f / 15 + s * (-17.0f / 315 + s * (62.0f / 2835)))));
  const float e = exp_negative(-2.0f * a);
  const float far = std::copysign((1.0f - e) / (1.0f + e), x);
  return a < 0.3f ? near : far;
}

FANGYAN_INLINE float row_max(const float* z, int64_t classes) {
  float lane[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) lane[i] = -std::numeric_limits<float>::infinity();
  int64_t c = 0;
  for (; c + kLanes <= classes; c += kLanes)
    for (int64_t i = 0; i < kLanes; ++i) lane[i] = z[c + i] > lane[i] ? z[c + i] : lane[i];
  for (int64_t i = 0; c + i < classes; ++i) lane[i] = z[c + i] > lane[i] ? z[c + i] : lane[i];
  return *std::max_element(lane, lane + kLanes);
}

// Sum of term(c) over the classes, in kLanes sums a block.
template <class Term>
FANGYAN_INLINE float row_sum(int64_t classes, const Term& term) {
  float total = 0.0f;
  for (int64_t start = 0; start < classes; start += kBlock) {
    const int64_t end = std::min(start + kBlock, classes);
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

FANGYAN_INLINE void row(const Chunk& k, int64_t r) {
  const int64_t classes = k.classes, t = k.token_R[r], y = k.target_T[t];
  const float eps = k.options.smoothing, cap = k.options.softcap;
  float* z = k.logits_RC + r * classes;
  if (k.bias_C)
    for (int64_t c = 0; c < classes; ++c) z[c] += k.bias_C[c];
  if (cap > 0.0f)
    for (int64_t c = 0; c < classes; ++c) z[c] = cap * tanh_of(z[c] / cap);

  const float max = row_max(z, classes), z_target = z[y];
  if (k.predict || z_target == max) {
    int64_t best = 0;
    while (best < classes - 1 && z[best] != max) ++best;
    k.correct_T[t] = best == y;
    if (k.predict) k.prediction_T[t] = best;
  }
  float gap = 0.0f;  // sum_c w_c (max - z_c): no difference of large sums
  if (eps > 0.0f && k.class_weight_C)
    gap = row_sum(classes, [&](int64_t c) { return k.class_weight_C[c] * (max - z[c]); });
  else if (eps > 0.0f)
    gap = row_sum(classes, [&](int64_t c) { return max - z[c]; });

  const bool keep = k.gradients && cap == 0.0f;  // the cap's derivative needs the logits again
  float sum_exp;
  if (keep)
    sum_exp = row_sum(classes, [&](int64_t c) { return z[c] = exp_negative(z[c] - max); });
  else
    sum_exp = row_sum(classes, [&](int64_t c) { return exp_negative(z[c] - max); });

  const float log_sum = std::log(sum_exp), lse = max + log_sum;
  const float weight = k.token_weight_T ? k.token_weight_T[t] : 1.0f;
  const float hit = (1.0f - eps) * (k.class_weight_C ? k.class_weight_C[y] : 1.0f);
  const float spread = eps / classes;
  k.loss_T[t] = weight * (hit * (log_sum + (max - z_target)) +
                          spread * (k.class_weight_sum * log_sum + gap) + k.options.z_loss * lse * lse);
  if (!k.gradients) return;

  const float scale = weight * k.scale;
  const float factor = scale * (hit + spread * k.class_weight_sum + 2.0f * k.options.z_loss * lse) / sum_exp;
  const float floor = scale * spread;
  if (cap > 0.0f) {
    for (int64_t c = 0; c < classes; ++c) {
      const float w = k.class_weight_C ? k.class_weight_C[c] : 1.0f, share = z[c] / cap;
      const float g = factor * exp_negative(z[c] - max) - floor * w - (c == y ? scale * hit : 0.0f);
      z[c] = g * (1.0f - share * share);
    }
    return;
  }
  if (eps > 0.0f && k.class_weight_C)
    for (int64_t c = 0; c < classes; ++c) z[c] = factor * z[c] - floor * k.class_weight_C[c];
  else
    for (int64_t c = 0; c < classes; ++c) z[c] = factor * z[c] - floor;
  z[y] -= scale * hit;
}

}  // namespace fangyan
