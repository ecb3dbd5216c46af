// The kernels of linear_cross_entropy.h, compiled once per instruction set.

namespace fangyan::linear_cross_entropy::FANGYAN_SIMD {

using namespace softmax;
using namespace matmul::FANGYAN_SIMD;

// Turns a row of products into logits.
FANGYAN_INLINE void add_bias_scale_and_cap(const LogitsChunk& k, float* z) {
  const float scale = k.options.logit_scale, cap = k.options.softcap;
  if (k.bias_C)
    for (int64_t c = 0; c < k.classes; ++c) z[c] += k.bias_C[c];
  if (scale != 1.0f)
    for (int64_t c = 0; c < k.classes; ++c) z[c] *= scale;
  if (cap > 0.0f)
    for (int64_t c = 0; c < k.classes; ++c) z[c] = cap * fast_tanh(z[c] / cap);
}

// Records the first class that has the largest logit; only looks for it where it is asked for or may be the target.
FANGYAN_INLINE void record_prediction(const LogitsChunk& k, const float* z, float max, int64_t t) {
  const int64_t y = k.target_T[t];
  if (!k.with_predictions && z[y] != max) return;
  int64_t best = 0;
  while (best < k.classes - 1 && z[best] != max) ++best;
  k.is_correct_T[t] = best == y;
  if (k.with_predictions) k.prediction_T[t] = best;
}

// Returns sum_c w_c (max - z_c), which unlike sum_c w_c z_c is not a difference of large sums.
FANGYAN_INLINE float sum_below_max(const LogitsChunk& k, const float* z, float max) {
  if (k.class_weight_C) return row_sum(k.classes, [&](int64_t c) { return k.class_weight_C[c] * (max - z[c]); });
  return row_sum(k.classes, [&](int64_t c) { return max - z[c]; });
}

// Replaces a row's logits by their gradients, once loss_row has computed its loss.
FANGYAN_INLINE void loss_row(const LogitsChunk& k, int64_t r) {
  const int64_t classes = k.classes, t = k.token_R[r], y = k.target_T[t];
  const float eps = k.options.smoothing, cap = k.options.softcap;
  float* z = k.logits_RC + r * classes;
  add_bias_scale_and_cap(k, z);
  const float max = row_max(z, classes), z_target = z[y];
  record_prediction(k, z, max, t);
  const float below_max = eps > 0.0f ? sum_below_max(k, z, max) : 0.0f;

  const bool keeps_exp = k.with_gradients && cap == 0.0f;  // the cap's derivative needs the logits again
  float sum_exp;
  if (keeps_exp)
    sum_exp = row_sum(classes, [&](int64_t c) { return z[c] = exp_nonpositive(z[c] - max); });
  else
    sum_exp = row_sum(classes, [&](int64_t c) { return exp_nonpositive(z[c] - max); });

  const float log_sum = std::log(sum_exp), lse = max + log_sum;
  const float token_weight = k.token_weight_T ? k.token_weight_T[t] : 1.0f;
  const float target_weight = (1.0f - eps) * (k.class_weight_C ? k.class_weight_C[y] : 1.0f);
  const float smoothing_per_class = eps / classes;
  k.loss_T[t] =
      token_weight * (target_weight * (log_sum + (max - z_target)) +
                      smoothing_per_class * (k.class_weight_sum * log_sum + below_max) + k.options.z_loss * lse * lse);
  if (!k.with_gradients) return;

  const float scale = token_weight * k.scale;
  const float exp_factor =
      scale * (target_weight + smoothing_per_class * k.class_weight_sum + 2.0f * k.options.z_loss * lse) / sum_exp;
  const float smoothing = scale * smoothing_per_class;
  if (cap > 0.0f) {
    for (int64_t c = 0; c < classes; ++c) {
      const float w = k.class_weight_C ? k.class_weight_C[c] : 1.0f, tanh = z[c] / cap;
      const float g =
          exp_factor * exp_nonpositive(z[c] - max) - smoothing * w - (c == y ? scale * target_weight : 0.0f);
      z[c] = g * (1.0f - tanh * tanh);
    }
    return;
  }
  if (eps > 0.0f && k.class_weight_C)
    for (int64_t c = 0; c < classes; ++c) z[c] = exp_factor * z[c] - smoothing * k.class_weight_C[c];
  else
    for (int64_t c = 0; c < classes; ++c) z[c] = exp_factor * z[c] - smoothing;
  z[y] -= scale * target_weight;
}

// Computes the losses and gradients of the rows [begin, end); those of ignored tokens become 0. Returns whether an
// ignored token's logits, and so its input, are not finite.
static bool loss_rows(const LogitsChunk& k, int64_t begin, int64_t end) {
  bool ignored_not_finite = false;
  for (int64_t r = begin; r < end; ++r) {
    float* z = k.logits_RC + r * k.classes;
    if (k.target_T[k.token_R[r]] != k.options.ignore_index) {
      loss_row(k, r);
    } else {
      ignored_not_finite |= !std::isfinite(z[0]);
      std::fill_n(z, k.classes, 0.0f);
    }
  }
  return ignored_not_finite;
}

// total_c += sum_r g_rc for the classes [begin, end). The order of the sum does not depend on the threads. Sums of
// kTileTokens rows come first: the rounding error grows with that number and with the number of such sums, not with
// their product.
static void add_columns(const float* g_RC, int64_t rows, int64_t classes, int64_t begin, int64_t end, float* total_C) {
  for (int64_t first = begin; first < end; first += kClassBlock) {
    const int64_t width = std::min(kClassBlock, end - first);
    for (int64_t start = 0; start < rows; start += kTileTokens) {
      float partial[kClassBlock] = {};
      for (int64_t r = start; r < std::min(start + kTileTokens, rows); ++r)
        for (int64_t c = 0; c < width; ++c) partial[c] += g_RC[r * classes + first + c];
      for (int64_t c = 0; c < width; ++c) total_C[first + c] += partial[c];
    }
  }
}

// Marks the classes of [begin, end) that have a gradient of at least `gradient_filter` times its token's own scale.
static void mark_columns(const LogitsChunk& k, int64_t rows, int64_t begin, int64_t end, uint8_t* is_marked_C) {
  for (int64_t r = 0; r < rows; ++r) {
    const float weight = k.token_weight_T ? k.token_weight_T[k.token_R[r]] : 1.0f;
    const float threshold = k.options.gradient_filter * std::fabs(weight * k.scale);
    for (int64_t c = begin; c < end; ++c) is_marked_C[c] |= !(std::fabs(k.logits_RC[r * k.classes + c]) < threshold);
  }
}

// Computes the tiles [begin, end) of one task.
static void small_vocab_tiles(const SmallVocabArguments& k, int64_t begin, int64_t end, SmallVocabWorkspace& own) {
  const int64_t classes = k.chunk.classes;
  LogitsChunk chunk = k.chunk;
  chunk.logits_RC = own.logits_RC.data();
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t start = tile * kTileTokens, rows = std::min(kTileTokens, k.num_valid - start);
    chunk.token_R = k.chunk.token_R + start;
    const float* input[kTileTokens];
    float* grad_input[kTileTokens];
    for (int64_t r = 0; r < kTileTokens; ++r) {  // rows that complete the last group are computed and dropped
      const int64_t token = chunk.token_R[r < rows ? r : 0];
      input[r] = k.input_TH + token * k.hidden;
      grad_input[r] = k.grad_input_TH && r < rows ? k.grad_input_TH + token * k.hidden : own.unused_row.data();
    }
    multiply_transposed(*k.weight, input, rows, chunk.logits_RC);
    for (int64_t r = 0; r < rows; ++r) loss_row(chunk, r);
    if (k.grad_input_TH) multiply(*k.weight, chunk.logits_RC, rows, false, grad_input);
    if (!own.grad_weight_CH.empty())
      add_outer_product(*k.weight, chunk.logits_RC, input, rows, own.grad_weight_CH.data());
    if (!own.grad_bias_C.empty())
      for (int64_t c = 0; c < classes; ++c) {
        float partial = 0.0f;  // sums of a tile come first, as in add_columns
        for (int64_t r = 0; r < rows; ++r) partial += chunk.logits_RC[r * classes + c];
        own.grad_bias_C[c] += partial;
      }
  }
}

}  // namespace fangyan::linear_cross_entropy::FANGYAN_SIMD
