// Softmax attention within each of many sequences, one head and some queries at a time: what a tile needs of a
// sequence's keys and values is copied into float32 once, in the order in which the products read it.
//
// T tokens, H heads, G heads of keys and values, D elements per head; L tokens of a sequence.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bfloat16.h"
#include "cpu_dispatch.h"
#include "matmul.h"
#include "softmax.h"

namespace fangyan::varlen_attention {

constexpr int64_t kTileQueries = 48;  // their scores against 512 keys are 98 KB
static_assert(kTileQueries % matmul::kRows == 0);

// A tensor (T, heads, D) whose D is contiguous; strides in elements.
template <class T>
struct HeadsView {
  T* data;
  int64_t token_stride, head_stride;

  T* at(int64_t token, int64_t head) const { return data + token * token_stride + head * head_stride; }
};

template <class T>
struct Arguments {
  HeadsView<const T> query, key, value;
  const int32_t* offsets;
  int64_t heads, key_heads, head_size;
  int64_t left, right;  // tokens that a query sees on either side; the longest sequence's where it sees all
  float scale;
  HeadsView<T> output{};
  // Backward: all or none.
  HeadsView<const T> grad{};
  HeadsView<T> grad_query{}, grad_key{}, grad_value{};
};

// Buffers of one thread. Rows of `padded_size` floats hold a head; rows of `score_stride` floats a query's scores.
struct Workspace {
  int64_t padded_size, score_stride;
  std::vector<float> query, key, value, key_panels, value_panels, scores, output;
  std::vector<float> grad, grad_scores, grad_key, grad_value;

  Workspace(int64_t longest, int64_t head_size, bool backward)
      : padded_size(matmul::round_up(head_size, matmul::kColumns)),
        score_stride(matmul::round_up(longest, matmul::kColumns) + matmul::kColumns) {
    const auto sequence = static_cast<size_t>(score_stride * padded_size);
    const auto tile = static_cast<size_t>(kTileQueries * padded_size);
    for (auto* buffer : {&key, &value, &key_panels}) buffer->resize(sequence);
    for (auto* buffer : {&query, &output}) buffer->resize(tile);
    scores.resize(kTileQueries * score_stride);
    if (!backward) return;
    for (auto* buffer : {&value_panels, &grad_key, &grad_value}) buffer->resize(sequence);
    grad.resize(tile);
    grad_scores.resize(kTileQueries * score_stride);
  }
};

}  // namespace fangyan::varlen_attention

#define FANGYAN_INL "varlen_attention-inl.h"
#include "cpu_dispatch.h"
