// Forward of a linear head with softmax cross-entropy, float32, without a T x C buffer.
//
//   z_tc   = sum_h input_th weight_ch + bias_c,  m_t = max_c z_tc
//   loss_t = log sum_c exp(z_tc - m_t) + (1 - eps) (m_t - z_t,target) + eps (m_t - mean_c z_tc)
//
// and 0 where the target is ignored; such rows cost no arithmetic. Reads input once and the weight
// once a row tile, writes 4 bytes a token: 2 T H C flops, compute-bound from H of about 16 up.
// Accumulates in float32, with an online softmax (Milakov & Gimelshein 2018). The maximum is
// subtracted before the logarithm is added: a small loss is not a difference of large numbers.
//
// T tokens, H hidden, C classes.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

// One binary for every x86-64 machine: the loader picks the widest clone the processor has.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FANGYAN_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FANGYAN_CLONES
#endif

namespace {

using torch::stable::Tensor;

// 4 x 16 accumulators fill 8 of AVX2's 16 registers and leave room for the operands.
constexpr int64_t kRows = 4;
constexpr int64_t kClasses = 16;

struct Problem {
  const float* input_TH;
  const float* weight_HP;  // transposed, C padded to P, a multiple of kClasses
  const float* bias_P;
  const int64_t* target_T;
  float* loss_T;
  int64_t hidden, classes, padded;
  float smoothing;
};

// The labelled rows `row[0..count)`, count <= kRows; short tiles repeat their first row.
FANGYAN_CLONES void forward_tile(const Problem& p, const int64_t* row, int64_t count) {
  const float* input[kRows];
  float maximum[kRows], sum_exp[kRows], sum_z[kRows], z_target[kRows];
  for (int64_t r = 0; r < kRows; ++r) {
    input[r] = p.input_TH + row[r < count ? r : 0] * p.hidden;
    maximum[r] = -std::numeric_limits<float>::infinity();
    sum_exp[r] = sum_z[r] = z_target[r] = 0.0f;
  }
  for (int64_t c0 = 0; c0 < p.padded; c0 += kClasses) {
    float z[kRows][kClasses];
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t c = 0; c < kClasses; ++c) z[r][c] = p.bias_P[c0 + c];
    for (int64_t h = 0; h < p.hidden; ++h) {
      const float* w = p.weight_HP + h * p.padded + c0;
      for (int64_t r = 0; r < kRows; ++r) {
        const float x = input[r][h];
        for (int64_t c = 0; c < kClasses; ++c) z[r][c] += x * w[c];
      }
    }
    const int64_t width = std::min(kClasses, p.classes - c0);
    for (int64_t r = 0; r < count; ++r) {
      float tile_max = maximum[r];
      for (int64_t c = 0; c < width; ++c) tile_max = std::max(tile_max, z[r][c]);
      float tile_exp = sum_exp[r] * std::exp(maximum[r] - tile_max);
      for (int64_t c = 0; c < width; ++c) {
        tile_exp += std::exp(z[r][c] - tile_max);
        sum_z[r] += z[r][c];
      }
      maximum[r] = tile_max;
      sum_exp[r] = tile_exp;
      const int64_t hit = p.target_T[row[r]] - c0;
      if (hit >= 0 && hit < width) z_target[r] = z[r][hit];
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    const float mean_gap = maximum[r] - sum_z[r] / p.classes;
    p.loss_T[row[r]] = std::log(sum_exp[r]) + (1.0f - p.smoothing) * (maximum[r] - z_target[r]) +
                       p.smoothing * mean_gap;
  }
}

std::vector<int64_t> labelled_rows(const Tensor& target_T, int64_t classes, int64_t ignore_index) {
  std::vector<int64_t> rows;
  const int64_t* target = static_cast<const int64_t*>(target_T.const_data_ptr());
  for (int64_t t = 0; t < target_T.numel(); ++t) {
    if (target[t] == ignore_index) continue;
    STD_TORCH_CHECK(target[t] >= 0 && target[t] < classes, "linear_cross_entropy: target[", t,
                    "] is ", target[t], ", expected a class in [0, ", classes,
                    ") or ignore_index ", ignore_index);
    rows.push_back(t);
  }
  return rows;
}

void check(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
           const Tensor& target) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(input.dim() == 2 && weight.dim() == 2 && target.dim() == 1 &&
                      input.size(1) == weight.size(1) && input.size(0) == target.size(0),
                  "linear_cross_entropy: expected input (T, H), weight (C, H) and target (T)");
  STD_TORCH_CHECK(input.scalar_type() == ScalarType::Float &&
                      weight.scalar_type() == ScalarType::Float &&
                      target.scalar_type() == ScalarType::Long,
                  "linear_cross_entropy: expected float32 input and weight, int64 target");
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0) &&
                            bias->scalar_type() == ScalarType::Float),
                  "linear_cross_entropy: expected a float32 bias (C)");
}

Tensor linear_cross_entropy_forward(Tensor input_TH, Tensor weight_CH, std::optional<Tensor> bias_C,
                                    Tensor target_T, int64_t ignore_index, double label_smoothing) {
  check(input_TH, weight_CH, bias_C, target_T);
  const int64_t tokens = input_TH.size(0), hidden = input_TH.size(1), classes = weight_CH.size(0);
  const int64_t padded = (classes + kClasses - 1) / kClasses * kClasses;
  input_TH = torch::stable::contiguous(input_TH);
  target_T = torch::stable::contiguous(target_T);
  Tensor loss_T = torch::stable::new_zeros(input_TH, {tokens});
  const std::vector<int64_t> rows = labelled_rows(target_T, classes, ignore_index);

  Tensor weight_HP = torch::stable::new_zeros(input_TH, {hidden, padded});
  Tensor weight_HC = torch::stable::narrow(weight_HP, 1, 0, classes);
  torch::stable::copy_(weight_HC, torch::stable::transpose(weight_CH, 0, 1));
  Tensor bias_P = torch::stable::new_zeros(input_TH, {padded});
  if (bias_C) {
    Tensor bias_valid = torch::stable::narrow(bias_P, 0, 0, classes);
    torch::stable::copy_(bias_valid, *bias_C);
  }
  const Problem problem{static_cast<const float*>(input_TH.const_data_ptr()),
                        static_cast<const float*>(weight_HP.const_data_ptr()),
                        static_cast<const float*>(bias_P.const_data_ptr()),
                        static_cast<const int64_t*>(target_T.const_data_ptr()),
                        static_cast<float*>(loss_T.mutable_data_ptr()),
                        hidden,
                        classes,
                        padded,
                        static_cast<float>(label_smoothing)};
  const int64_t labelled = static_cast<int64_t>(rows.size());
  const int64_t tiles = (labelled + kRows - 1) / kRows;
  torch::stable::parallel_for(0, tiles, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      forward_tile(problem, rows.data() + i * kRows, std::min(kRows, labelled - i * kRows));
  });
  return loss_T;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fangyan, CPU, m) {
  m.impl("linear_cross_entropy_forward", TORCH_BOX(&linear_cross_entropy_forward));
}
