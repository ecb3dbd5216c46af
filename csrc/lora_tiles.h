// The low-rank products of a linear layer's adapter, some tokens at a time: a tile of x, of y and of their
// gradients is read from memory once, however many products take part. Dropout is drawn where x is read.
//
// T tokens, K in, N out, R rank; the adapter's matrices are A (R, K) and s B' (R, N).

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "clones.h"
#include "lora_dropout.h"
#include "products.h"

namespace fangyan {

struct LoraTiles {
  const float* input_TK;
  const Factor *a, *b;
  Dropout dropout;
  int64_t tokens, rows;  // rows of a tile, at most kMostRows
  // Forward: y += low s B'. Backward: reads grad_TN and adds to grad_input_TK. Null where not wanted.
  float* output_TN;
  const float* grad_TN;
  float* grad_input_TK;
};

// A task's own.
struct LoraSums {
  std::vector<float> a_RK, b_RN;  // gradients, of the factors' sum_size(); empty where they are not wanted
  std::vector<float> dropped, low, grad_low, unused_row;
};

namespace baseline {
#include "lora_tiles.inc"
}

// As for tag_tiles.h.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "lora_tiles.inc"
}
#pragma GCC pop_options

inline void lora_tiles(const LoraTiles& k, int64_t begin, int64_t end, LoraSums& sums) {
  widest() >= Vectors::kAvx2 ? avx2::lora_tiles(k, begin, end, sums) : baseline::lora_tiles(k, begin, end, sums);
}
#else
using baseline::lora_tiles;
#endif

}  // namespace fangyan
