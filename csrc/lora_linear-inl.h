// The kernels of lora_linear.h, compiled once per instruction set.

namespace fangyan::lora_linear::FANGYAN_SIMD {

using namespace matmul::FANGYAN_SIMD;
using matmul::kMaxRows;

FANGYAN_INLINE uint32_t hash(uint32_t word) {
  word ^= word >> 16;
  word *= 0x7feb352du;
  word ^= word >> 15;
  word *= 0x846ca68bu;
  return word ^ (word >> 16);
}

// to (+)= D * from for row `token`, in float32 or bfloat16: computed in float32 and rounded once.
template <typename Element>
FANGYAN_INLINE void drop(const Dropout& d, int64_t token, const Element* __restrict from, int64_t columns,
                         bool accumulate, Element* __restrict to) {
  const uint32_t key = hash(hash(static_cast<uint32_t>(token) + d.seed_lo) ^ d.seed_hi), threshold = d.threshold;
  const float scale = d.scale;
  for (int32_t k = 0; k < static_cast<int32_t>(columns); ++k) {
    const float factor = hash(static_cast<uint32_t>(k) ^ key) >= threshold ? scale : 0.0f;
    assign(to[k], to_float(from[k]) * factor + (accumulate ? to_float(to[k]) : 0.0f));
  }
}

static void drop_rows(const Dropout& dropout, int64_t begin, int64_t end, const uint16_t* from, int64_t columns,
                      bool accumulate, uint16_t* to) {
  for (int64_t token = begin; token < end; ++token)
    drop(dropout, token, from + token * columns, columns, accumulate, to + token * columns);
}

// grad_input += D * (grad_low A)
FANGYAN_INLINE void add_grad_input(const Arguments& k, int64_t start, int64_t rows, const Workspace& own,
                                   float* dropped, float* const* grad_input) {
  if (!k.dropout.is_active) {
    multiply(*k.a_RK, own.grad_low_TR.data(), rows, true, grad_input);
    return;
  }
  const int64_t in_features = k.a_RK->columns;
  float* product[kMaxRows];
  for (int64_t r = 0; r < kMaxRows; ++r) product[r] = dropped + r * in_features;
  multiply(*k.a_RK, own.grad_low_TR.data(), rows, false, product);
  for (int64_t r = 0; r < rows; ++r) drop(k.dropout, start + r, product[r], in_features, true, grad_input[r]);
}

// Computes the tiles [begin, end) of one task.
static void lora_tiles(const Arguments& k, int64_t begin, int64_t end, Workspace& own) {
  const int64_t in_features = k.a_RK->columns, out_features = k.b_RN->columns;
  const bool needs_low = k.output_TN || !own.grad_b_RN.empty();
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t start = tile * k.tile_tokens, rows = std::min(k.tile_tokens, k.tokens - start);
    const float *input[kMaxRows], *grad[kMaxRows];
    float *output[kMaxRows], *grad_input[kMaxRows];
    for (int64_t r = 0; r < kMaxRows; ++r) {  // rows that complete the last group are computed and dropped
      const int64_t token = start + (r < rows ? r : 0);
      input[r] = k.input_TK + token * in_features;
      if (k.grad_TN) grad[r] = k.grad_TN + token * out_features;
      output[r] = k.output_TN && r < rows ? k.output_TN + token * out_features : own.unused_row.data();
      grad_input[r] = k.grad_input_TK && r < rows ? k.grad_input_TK + token * in_features : own.unused_row.data();
    }
    float* dropped = own.dropped_TK.data();
    if (k.grad_TN) {
      multiply_transposed(*k.b_RN, grad, rows, own.grad_low_TR.data());
      if (k.grad_input_TK) add_grad_input(k, start, rows, own, dropped, grad_input);
    }
    if (k.dropout.is_active && (needs_low || !own.grad_a_RK.empty()))
      for (int64_t r = 0; r < kMaxRows; ++r) {
        if (r < rows) drop(k.dropout, start + r, input[r], in_features, false, dropped + r * in_features);
        input[r] = dropped + (r < rows ? r : 0) * in_features;
      }
    if (needs_low) multiply_transposed(*k.a_RK, input, rows, own.low_TR.data());
    if (k.output_TN) multiply(*k.b_RN, own.low_TR.data(), rows, true, output);
    if (!own.grad_a_RK.empty()) add_outer_product(*k.a_RK, own.grad_low_TR.data(), input, rows, own.grad_a_RK.data());
    if (!own.grad_b_RN.empty()) add_outer_product(*k.b_RN, own.low_TR.data(), grad, rows, own.grad_b_RN.data());
  }
}

}  // namespace fangyan::lora_linear::FANGYAN_SIMD
