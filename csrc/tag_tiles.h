// Head, softmax and gradients of a few tokens at a time, for few classes: a tile's input is read from
// memory once and is still in the second-level cache for its last product. Labelled tokens are reached by
// pointers: ignored ones cost nothing and nothing is gathered.
//
// T tokens, H hidden, C classes; R tokens of a tile.

#pragma once

#include <cstring>
#include <vector>

#include "clones.h"
#include "products.h"
#include "softmax_row.h"

namespace fangyan {

constexpr int64_t kTile = 48;  // tokens: their input of 768 floats is 147 KB, half of a second-level cache
static_assert(kTile % kGroup == 0 && kTile <= kMostRows);

// What tiles read and write; a task sums its own grad_weight and grad_bias.
struct TagTiles {
  Chunk chunk;  // all labelled tokens; its logits are a task's own
  const float* input_TH;
  const Factor* weight;
  int64_t hidden, count;
  float* grad_input_TH;  // or null
};

struct TagSums {
  std::vector<float> weight_CH;  // of the factor's sum_size(); empty where it is not wanted
  std::vector<float> bias_C;
  std::vector<float> logits, unused_row;
};

namespace baseline {
#include "tag_tiles.inc"
}

// Vectors of 32 bytes have to be known to the processor when their type is declared: clones of one
// function would compute them a float at a time.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "tag_tiles.inc"
}
#pragma GCC pop_options

inline void tag_tiles(const TagTiles& k, int64_t begin, int64_t end, TagSums& sums) {
  widest() >= Vectors::kAvx2 ? avx2::tag_tiles(k, begin, end, sums) : baseline::tag_tiles(k, begin, end, sums);
}
#else
using baseline::tag_tiles;
#endif

}  // namespace fangyan
