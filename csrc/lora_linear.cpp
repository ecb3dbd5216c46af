// The low-rank part of a linear layer's adapter on the CPU, in float32. The products with the frozen weight are
// PyTorch's (kernels/fangyan_kernels/lora_linear/cpu.py); in bfloat16 all products are, and only dropout is ours.
//
//   forward:   y += low s B',  low = (D * x) A'
//   backward:  grad_low = g (s B')',  grad_x += D * (grad_low A),  grad_A = grad_low' (D * x),  grad_sB' = low' g
//
// Forward: 2 T R (K + N) operations; x is read, y read and written once. Backward: 4 T R (K + N) operations, and
// 2 T R K more where grad_x is wanted; x and g are read, grad_x read and written once.
//
// T tokens, K in, N out, R rank.

#include "lora_linear.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace fangyan::lora_linear {
namespace {

using matmul::PackedMatrix;

// Bytes of a tile's x, y and their gradients together. Larger tiles lose more to the second-level cache than longer
// products win.
constexpr int64_t kTileBytes = 1 << 20;

// Elements that are worth another thread: dropout takes 11 us for them.
constexpr int64_t kDropoutGrain = 1 << 15;

void check(const char* name, const Tensor& matrix, int64_t rows, int64_t columns,
           ScalarType dtype = ScalarType::Float) {
  STD_TORCH_CHECK(matrix.dim() == 2 && matrix.size(0) == rows && matrix.size(1) == columns &&
                      matrix.scalar_type() == dtype && matrix.is_contiguous(),
                  "lora_linear: expected ", name, " as a contiguous ",
                  dtype == ScalarType::Float ? "float32" : "bfloat16", " matrix of ", rows, " x ", columns);
}

Dropout make_dropout(const std::optional<Tensor>& seed, double probability) {
  if (!seed) return {.is_active = false, .seed_lo = 0, .seed_hi = 0, .threshold = 0, .scale = 1.0f};
  STD_TORCH_CHECK(
      seed->numel() == 1 && seed->scalar_type() == ScalarType::Long && probability >= 0.0 && probability < 1.0,
      "lora_linear: expected an int64 seed () and a dropout in [0, 1)");
  const uint64_t bits = static_cast<uint64_t>(*const_data<int64_t>(*seed));
  const double threshold = std::min(std::nearbyint(probability * 4294967296.0), 4294967295.0);
  return {.is_active = true,
          .seed_lo = static_cast<uint32_t>(bits),
          .seed_hi = static_cast<uint32_t>(bits >> 32),
          .threshold = static_cast<uint32_t>(threshold),
          .scale = static_cast<float>(1.0 / (1.0 - probability))};
}

int64_t tile_tokens(int64_t features) {
  const int64_t tokens = kTileBytes / (8 * std::max<int64_t>(features, 1)) / matmul::kRows * matmul::kRows;
  return std::clamp(tokens, matmul::kRows, matmul::kMaxRows);
}

// Runs one task per thread: the order of the sums, and so their last bits, depend on the number of threads and on
// nothing else.
std::vector<Workspace> run(const Arguments& k, bool wants_adapter) {
  const int64_t tiles = (k.tokens + k.tile_tokens - 1) / k.tile_tokens;
  const int64_t tasks = std::min<int64_t>(tiles, torch::stable::get_num_threads());
  const int64_t in_features = k.a_RK->columns, out_features = k.b_RN->columns, rank = k.a_RK->rows;
  std::vector<Workspace> workspaces(tasks);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Workspace& own = workspaces[i];
      if (wants_adapter) {
        own.grad_a_RK.resize(k.a_RK->sum_size());
        own.grad_b_RN.resize(k.b_RN->sum_size());
      }
      if (k.dropout.is_active) own.dropped_TK.resize(matmul::kMaxRows * in_features);
      own.low_TR.resize(matmul::kMaxRows * rank);
      own.grad_low_TR.resize(matmul::kMaxRows * rank);
      own.unused_row.resize(std::max(in_features, out_features));
      FANGYAN_DISPATCH(lora_tiles)(k, i * tiles / tasks, (i + 1) * tiles / tasks, own);
    }
  });
  return workspaces;
}

// Returns the sum of the tasks' gradients of one matrix.
Tensor total(const Tensor& like, const std::vector<Workspace>& workspaces, std::vector<float> Workspace::* sum,
             const PackedMatrix& matrix) {
  Tensor result = torch::stable::new_zeros(like, {matrix.rows, matrix.columns}, ScalarType::Float);
  float* to = mutable_data<float>(result);
  for (const Workspace& own : workspaces)
    for (int64_t r = 0; r < matrix.rows; ++r)
      for (int64_t k = 0; k < matrix.columns; ++k)
        to[r * matrix.columns + k] += (own.*sum)[r * matrix.padded_columns + k];
  return result;
}

// output += (D * input) a' b, in place.
void forward_(Tensor output_TN, Tensor input_TK, Tensor a_RK, Tensor b_RN, std::optional<Tensor> seed, double dropout) {
  const int64_t tokens = input_TK.size(0), in_features = input_TK.size(1), out_features = output_TN.size(1);
  check("input", input_TK, tokens, in_features);
  check("output", output_TN, tokens, out_features);
  check("a", a_RK, a_RK.size(0), in_features);
  check("b", b_RN, a_RK.size(0), out_features);
  const PackedMatrix a(const_data<float>(a_RK), a_RK.size(0), in_features);
  const PackedMatrix b(const_data<float>(b_RN), a_RK.size(0), out_features);
  run({.input_TK = const_data<float>(input_TK),
       .a_RK = &a,
       .b_RN = &b,
       .dropout = make_dropout(seed, dropout),
       .tokens = tokens,
       .tile_tokens = tile_tokens(in_features + out_features),
       .output_TN = mutable_data<float>(output_TN)},
      false);
}

// Returns the gradients of a and b, empty where they are not wanted, and adds that of the input to grad_input.
std::tuple<Tensor, Tensor> backward_(Tensor grad_TN, Tensor input_TK, Tensor a_RK, Tensor b_RN,
                                     std::optional<Tensor> seed, double dropout, std::optional<Tensor> grad_input_TK,
                                     bool wants_adapter) {
  const int64_t tokens = input_TK.size(0), in_features = input_TK.size(1), out_features = grad_TN.size(1);
  check("input", input_TK, tokens, in_features);
  check("grad", grad_TN, tokens, out_features);
  check("a", a_RK, a_RK.size(0), in_features);
  check("b", b_RN, a_RK.size(0), out_features);
  if (grad_input_TK) check("grad_input", *grad_input_TK, tokens, in_features);
  const PackedMatrix a(const_data<float>(a_RK), a_RK.size(0), in_features);
  const PackedMatrix b(const_data<float>(b_RN), a_RK.size(0), out_features);
  const std::vector<Workspace> workspaces = run({.input_TK = const_data<float>(input_TK),
                                                 .a_RK = &a,
                                                 .b_RN = &b,
                                                 .dropout = make_dropout(seed, dropout),
                                                 .tokens = tokens,
                                                 .tile_tokens = tile_tokens(in_features + out_features),
                                                 .grad_TN = const_data<float>(grad_TN),
                                                 .grad_input_TK = mutable_data<float>(grad_input_TK)},
                                                wants_adapter);
  if (!wants_adapter) return {torch::stable::new_empty(a_RK, {0}), torch::stable::new_empty(b_RN, {0})};
  return {total(a_RK, workspaces, &Workspace::grad_a_RK, a), total(b_RN, workspaces, &Workspace::grad_b_RN, b)};
}

// output (+)= D * input, in place, in bfloat16.
void dropout_(Tensor output_TK, Tensor input_TK, Tensor seed, double probability, bool accumulate) {
  const int64_t tokens = input_TK.size(0), in_features = input_TK.size(1);
  check("input", input_TK, tokens, in_features, ScalarType::BFloat16);
  check("output", output_TK, tokens, in_features, ScalarType::BFloat16);
  const Dropout dropout = make_dropout(seed, probability);
  const auto* from = const_data<uint16_t>(input_TK);
  auto* to = mutable_data<uint16_t>(output_TK);
  const int64_t grain = std::max<int64_t>(kDropoutGrain / std::max<int64_t>(in_features, 1), 1);
  torch::stable::parallel_for(0, tokens, grain, [&](int64_t begin, int64_t end) {
    FANGYAN_DISPATCH(drop_rows)(dropout, begin, end, from, in_features, accumulate, to);
  });
}

}  // namespace
}  // namespace fangyan::lora_linear

STABLE_TORCH_LIBRARY_IMPL(fangyan, CPU, m) {
  m.impl("lora_forward_", TORCH_BOX(&fangyan::lora_linear::forward_));
  m.impl("lora_backward_", TORCH_BOX(&fangyan::lora_linear::backward_));
  m.impl("lora_dropout_", TORCH_BOX(&fangyan::lora_linear::dropout_));
}
