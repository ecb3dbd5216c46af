// Head, softmax and gradients of a few tokens at a time, for few classes: a tile's input is read from
// memory once and is still in the second-level cache for its last product. A library's products are slow
// where one side is a handful of classes; these keep 6 x 16 sums in registers, the most that AVX2 holds.
// Labelled tokens are reached by pointers: ignored ones cost nothing and nothing is gathered.
//
// T tokens, H hidden, C classes; R tokens of a tile.

#pragma once

#include <cstring>
#include <vector>

#include "softmax_row.h"

namespace fangyan {

constexpr int64_t kTile = 48;   // tokens: their input of 768 floats is 147 KB
constexpr int64_t kGroup = 6;   // rows of sums in registers
constexpr int64_t kWidth = 16;  // columns of sums in registers
static_assert(kTile % kGroup == 0);

// The head's weight as the tiles read it, with columns of zeros up to a multiple of kWidth.
struct TagWeight {
  std::vector<float> classes;  // (C / kWidth, H, kWidth): for the logits
  std::vector<float> hidden;   // (C, H padded): for the gradient of the input
  int64_t padded_hidden;

  TagWeight(const float* weight_CH, int64_t classes_, int64_t hidden_)
      : classes((classes_ + kWidth - 1) / kWidth * kWidth * hidden_),
        hidden(),
        padded_hidden((hidden_ + kWidth - 1) / kWidth * kWidth) {
    for (int64_t c = 0; c < classes_; ++c)
      for (int64_t h = 0; h < hidden_; ++h)
        classes[((c / kWidth) * hidden_ + h) * kWidth + c % kWidth] = weight_CH[c * hidden_ + h];
    hidden.resize(classes_ * padded_hidden);
    for (int64_t c = 0; c < classes_; ++c)
      std::memcpy(&hidden[c * padded_hidden], weight_CH + c * hidden_, hidden_ * sizeof(float));
  }
};

// What tiles read and write; a task sums its own grad_weight and grad_bias.
struct TagTiles {
  Chunk chunk;  // all labelled tokens; its logits are a task's own
  const float* input_TH;
  const TagWeight* weight;
  int64_t hidden, count;
  float* grad_input_TH;  // or null
};

struct TagSums {
  std::vector<float> weight_CH;  // rows of padded_hidden; empty where it is not wanted
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
  static const bool wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  wide ? avx2::tag_tiles(k, begin, end, sums) : baseline::tag_tiles(k, begin, end, sums);
}
#else
using baseline::tag_tiles;
#endif

}  // namespace fangyan
