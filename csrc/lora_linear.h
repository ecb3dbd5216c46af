// The low-rank products of a linear layer's adapter, one tile of tokens at a time: a tile of x, of y and of their
// gradients is read from memory once, however many products use it. Dropout is drawn where x is read.
//
// T tokens, K in, N out, R rank; the adapter's matrices are A (R, K) and s B' (R, N).

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bfloat16.h"
#include "cpu_dispatch.h"
#include "matmul.h"

namespace fangyan::lora_linear {

// An element is kept or dropped by a hash of the seed and of its position, so that no mask is stored;
// lora_linear/reference.py owns the meaning.
struct Dropout {
  bool is_active;
  uint32_t seed_lo, seed_hi;
  uint32_t threshold;  // of the hash: smaller ones drop
  float scale;
};

struct Arguments {
  const float* input_TK;
  const matmul::PackedMatrix *a_RK, *b_RN;
  Dropout dropout;
  int64_t tokens, tile_tokens;  // tile_tokens at most matmul::kMaxRows
  // Forward: y += low s B'. Backward: reads grad_TN and adds to grad_input_TK. Null where not wanted.
  float* output_TN = nullptr;
  const float* grad_TN = nullptr;
  float* grad_input_TK = nullptr;
};

// Sums and buffers of one task.
struct Workspace {
  std::vector<float> grad_a_RK, grad_b_RN;  // of PackedMatrix::sum_size(); empty where they are not wanted
  std::vector<float> dropped_TK, low_TR, grad_low_TR, unused_row;
};

}  // namespace fangyan::lora_linear

#define FANGYAN_INL "lora_linear-inl.h"
#include "cpu_dispatch.h"
