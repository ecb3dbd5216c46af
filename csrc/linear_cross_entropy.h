// The loss of a row of logits and its gradient, which takes the row's place, and for small vocabularies the head's
// products as well. The formula is in linear_cross_entropy.cpp.
//
// T tokens, H hidden, C classes; R tokens of a chunk or tile.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu_dispatch.h"
#include "matmul.h"
#include "softmax.h"

namespace fangyan::linear_cross_entropy {

// Tokens of a tile: their input of 768 floats is 147 KB, half of a second-level cache.
constexpr int64_t kTileTokens = 48;
static_assert(kTileTokens % matmul::kRows == 0 && kTileTokens <= matmul::kMaxRows);

// Classes whose gradients are summed or compared together: their sums stay in the first-level cache.
constexpr int64_t kClassBlock = 1024;

struct LossOptions {
  int64_t ignore_index;
  float smoothing, z_loss, logit_scale, softcap, gradient_filter;
};

// Logits of some tokens in, their gradients out.
struct LogitsChunk {
  float* logits_RC;
  const float* bias_C;          // or null
  const float* class_weight_C;  // or null
  const int64_t* token_R;       // indices into the T tokens
  const int64_t* target_T;
  const float* token_weight_T;  // or null
  int64_t classes;
  float class_weight_sum;
  float scale;  // logit_scale / divisor, of the gradients
  bool with_gradients, with_predictions;
  LossOptions options;
  float* loss_T;
  int64_t* prediction_T;
  uint8_t* is_correct_T;
};

// The head, the loss and the gradients of a small vocabulary, one tile of tokens at a time: a tile's input is read from
// memory once and is still in the second-level cache for its last product. Valid tokens are reached by pointers, so
// that ignored ones cost nothing and nothing is gathered.
struct SmallVocabArguments {
  LogitsChunk chunk;  // all valid tokens; the logits are in the workspace
  const float* input_TH;
  const matmul::PackedMatrix* weight;
  int64_t hidden, num_valid;
  float* grad_input_TH;  // or null
};

// Sums and buffers of one task.
struct SmallVocabWorkspace {
  std::vector<float> grad_weight_CH;  // of PackedMatrix::sum_size(); empty where it is not wanted
  std::vector<float> grad_bias_C;     // empty where it is not wanted
  std::vector<float> logits_RC, unused_row;
};

}  // namespace fangyan::linear_cross_entropy

#define FANGYAN_INL "linear_cross_entropy-inl.h"
#include "cpu_dispatch.h"
