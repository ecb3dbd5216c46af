// The low-rank part of a linear layer's adapter on the CPU, in float32; the products with the frozen weight
// are PyTorch's (kernels/fangyan_kernels/lora_linear/cpu.py). In bfloat16 all products are, and dropout is ours.
//
//   forward:   y += low s B',  low = (D * x) A'
//   backward:  grad_low = g (s B')',  grad_x += D * (grad_low A),  grad_A = grad_low' (D * x),  grad_sB' = low' g
//
// Forward: 2 T R (K + N) operations; x is read, y read and written once. Backward: 4 T R (K + N) operations, and
// 2 T R K more where grad_x is wanted; x and g are read, grad_x read and written once.
//
// T tokens, K in, N out, R rank.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "lora_tiles.h"

namespace {

using namespace fangyan;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A tile's x, y and their gradients together. Larger tiles lose to the second-level cache what they gain in
// longer products.
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

const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }

Dropout dropout_of(const std::optional<Tensor>& seed, double dropout) {
  if (!seed) return {false, 0, 0, 0, 1.0f};
  STD_TORCH_CHECK(seed->numel() == 1 && seed->scalar_type() == ScalarType::Long && dropout >= 0.0 && dropout < 1.0,
                  "lora_linear: expected an int64 seed () and a dropout in [0, 1)");
  const uint64_t bits = static_cast<uint64_t>(*static_cast<const int64_t*>(seed->const_data_ptr()));
  const double threshold = std::min(std::nearbyint(dropout * 4294967296.0), 4294967295.0);
  return {true, static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32), static_cast<uint32_t>(threshold),
          static_cast<float>(1.0 / (1.0 - dropout))};
}

int64_t rows_of_a_tile(int64_t columns) {
  const int64_t rows = kTileBytes / (8 * std::max<int64_t>(columns, 1)) / kGroup * kGroup;
  return std::clamp(rows, kGroup, kMostRows);
}

// Tasks are as many as threads: the sums' order, and so their last bits, depend on the number of threads
// and on nothing else.
std::vector<LoraSums> run(const LoraTiles& k, bool wants_a, bool wants_b) {
  const int64_t number = (k.tokens + k.rows - 1) / k.rows, inner = k.a->columns, outer = k.b->columns;
  const int64_t tasks = std::min<int64_t>(number, torch::stable::get_num_threads());
  std::vector<LoraSums> sums(tasks);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      LoraSums& own = sums[i];
      if (wants_a) own.a_RK.resize(k.a->sum_size());
      if (wants_b) own.b_RN.resize(k.b->sum_size());
      if (k.dropout.active) own.dropped.resize(kMostRows * inner);
      own.low.resize(kMostRows * k.a->rows);
      own.grad_low.resize(kMostRows * k.a->rows);
      own.unused_row.resize(std::max(inner, outer));
      lora_tiles(k, i * number / tasks, (i + 1) * number / tasks, own);
    }
  });
  return sums;
}

Tensor total(const Tensor& like, const std::vector<LoraSums>& sums, std::vector<float> LoraSums::*part,
             const Factor& factor) {
  Tensor result = torch::stable::new_zeros(like, {factor.rows, factor.columns}, ScalarType::Float);
  float* to = static_cast<float*>(result.mutable_data_ptr());
  for (const LoraSums& own : sums)
    for (int64_t r = 0; r < factor.rows; ++r)
      for (int64_t k = 0; k < factor.columns; ++k)
        to[r * factor.columns + k] += (own.*part)[r * factor.padded + k];
  return result;
}

// output += (D * input) a' b, in place.
void lora_forward_(Tensor output_TN, Tensor input_TK, Tensor a_RK, Tensor b_RN, std::optional<Tensor> seed,
                   double dropout) {
  const int64_t tokens = input_TK.size(0), inner = input_TK.size(1), outer = output_TN.size(1);
  check("input", input_TK, tokens, inner);
  check("output", output_TN, tokens, outer);
  check("a", a_RK, a_RK.size(0), inner);
  check("b", b_RN, a_RK.size(0), outer);
  const Factor a(floats(a_RK), a_RK.size(0), inner), b(floats(b_RN), a_RK.size(0), outer);
  run({floats(input_TK), &a, &b, dropout_of(seed, dropout), tokens, rows_of_a_tile(inner + outer),
       static_cast<float*>(output_TN.mutable_data_ptr()), nullptr, nullptr},
      false, false);
}

// The gradients of a and b, of those that are wanted, and that of the input, added to grad_input.
std::tuple<Tensor, Tensor> lora_backward_(Tensor grad_TN, Tensor input_TK, Tensor a_RK, Tensor b_RN,
                                          std::optional<Tensor> seed, double dropout,
                                          std::optional<Tensor> grad_input_TK, bool wants_adapter) {
  const int64_t tokens = input_TK.size(0), inner = input_TK.size(1), outer = grad_TN.size(1);
  check("input", input_TK, tokens, inner);
  check("grad", grad_TN, tokens, outer);
  check("a", a_RK, a_RK.size(0), inner);
  check("b", b_RN, a_RK.size(0), outer);
  if (grad_input_TK) check("grad_input", *grad_input_TK, tokens, inner);
  const Factor a(floats(a_RK), a_RK.size(0), inner), b(floats(b_RN), a_RK.size(0), outer);
  const std::vector<LoraSums> sums =
      run({floats(input_TK), &a, &b, dropout_of(seed, dropout), tokens, rows_of_a_tile(inner + outer), nullptr,
           floats(grad_TN), grad_input_TK ? static_cast<float*>(grad_input_TK->mutable_data_ptr()) : nullptr},
          wants_adapter, wants_adapter);
  if (!wants_adapter) return {torch::stable::new_empty(a_RK, {0}), torch::stable::new_empty(b_RN, {0})};
  return {total(a_RK, sums, &LoraSums::a_RK, a), total(b_RN, sums, &LoraSums::b_RN, b)};
}

FANGYAN_CLONES void drop_rows(const Dropout& dropout, int64_t begin, int64_t end, const uint16_t* from,
                              int64_t columns, bool accumulate, uint16_t* to) {
  for (int64_t token = begin; token < end; ++token)
    drop(dropout, token, from + token * columns, columns, accumulate, to + token * columns);
}

// output (+)= D * input, in place, in bfloat16.
void lora_dropout_(Tensor output_TK, Tensor input_TK, Tensor seed, double dropout, bool accumulate) {
  const int64_t tokens = input_TK.size(0), inner = input_TK.size(1);
  check("input", input_TK, tokens, inner, ScalarType::BFloat16);
  check("output", output_TK, tokens, inner, ScalarType::BFloat16);
  const Dropout drawn = dropout_of(seed, dropout);
  const auto* from = static_cast<const uint16_t*>(input_TK.const_data_ptr());
  auto* to = static_cast<uint16_t*>(output_TK.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(kDropoutGrain / std::max<int64_t>(inner, 1), 1);
  torch::stable::parallel_for(0, tokens, grain, [&](int64_t begin, int64_t end) {
    drop_rows(drawn, begin, end, from, inner, accumulate, to);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fangyan, CPU, m) {
  m.impl("lora_forward_", TORCH_BOX(&lora_forward_));
  m.impl("lora_backward_", TORCH_BOX(&lora_backward_));
  m.impl("lora_dropout_", TORCH_BOX(&lora_dropout_));
}
