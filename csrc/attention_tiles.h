// Softmax attention within each of many sequences, a head and some queries at a time: what a tile needs of a
// sequence's keys and values is copied into float32 once, in the order that the products read.
//
// T tokens, H heads, G heads of keys and values, D numbers a head; L tokens of a sequence.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "bfloat16.h"
#include "clones.h"
#include "products.h"
#include "softmax_row.h"

namespace fangyan {

constexpr int64_t kQueries = 48;  // of a tile: its scores against 512 keys are 98 KB
static_assert(kQueries % kGroup == 0);

// (T, heads, D) with D contiguous; the strides of the others in elements.
template <class T>
struct Heads {
  T* data;
  int64_t of_token, of_head;

  T* at(int64_t token, int64_t head) const { return data + token * of_token + head * of_head; }
};

template <class T>
struct Attention {
  Heads<const T> query, key, value;
  const int32_t* offsets;
  int64_t heads, key_heads, size;
  int64_t left, right;  // how far a token sees; the longest sequence where it sees all
  float scale;
  Heads<T> output;
  // Backward: all or none.
  Heads<const T> grad;
  Heads<T> grad_query, grad_key, grad_value;
};

// A thread's own. Rows of `padded` numbers hold a head; rows of `stride` hold a query's scores.
struct AttentionScratch {
  int64_t padded, stride;
  std::vector<float> query, key, value, key_columns, value_columns, scores, output;
  std::vector<float> grad, grad_scores, grad_key, grad_value;

  AttentionScratch(int64_t longest, int64_t size, bool backward)
      : padded((size + kWidth - 1) / kWidth * kWidth), stride((longest + kWidth - 1) / kWidth * kWidth + kWidth) {
    const auto rows = static_cast<size_t>(stride * padded), tile = static_cast<size_t>(kQueries * padded);
    for (auto* part : {&key, &value, &key_columns}) part->resize(rows);
    for (auto* part : {&query, &output}) part->resize(tile);
    scores.resize(kQueries * stride);
    if (!backward) return;
    for (auto* part : {&value_columns, &grad_key, &grad_value}) part->resize(rows);
    grad.resize(tile);
    grad_scores.resize(kQueries * stride);
  }
};

namespace baseline {
#include "attention_tiles.inc"
}

// As for tag_tiles.h.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "attention_tiles.inc"
}
#pragma GCC pop_options

template <class T>
void attend(const Attention<T>& k, int64_t sequence, int64_t key_head, AttentionScratch& scratch) {
  widest() >= Vectors::kAvx2 ? avx2::attend(k, sequence, key_head, scratch)
                             : baseline::attend(k, sequence, key_head, scratch);
}
#else
using baseline::attend;
#endif

}  // namespace fangyan
