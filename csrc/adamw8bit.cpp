// Steps of AdamW, Lion and AdEMAMix with 8-bit states in blocks of 256 numbers, in float32 arithmetic
// (Dettmers et al. 2022, arXiv 2110.02861; Loshchilov & Hutter 2019, 1711.05101; Chen et al. 2023, 2302.06675;
// Pagliardini et al. 2024, 2409.03137). kernels/fangyan_kernels/adamw8bit/reference.py owns the meaning.
//
// AdamW in float32 moves 16 bytes a number: the parameter is read and written, the gradient read, two codes read and
// written; and a 256th of the scales. The loops have 79 instructions for eight numbers with AVX2, 65 for sixteen with
// AVX-512: a core of a Zen 4 at 3.7 GHz goes through 17 or 23 GB/s so, and is not bound by memory that gives it more.
//
// Blocks do not know each other: the bits are the same for any number of threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "bfloat16.h"
#include "optimizer_blocks.h"

namespace {

using namespace fangyan;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Blocks that a thread takes at a time: some fifty microseconds.
constexpr int64_t kShare = 256;

Number number_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Number::kFloat;
    case ScalarType::BFloat16: return Number::kBFloat16;
    case ScalarType::Half: return Number::kHalf;
    default: STD_TORCH_CHECK(false, "optimizer_step_: expected ", name, " in float32, bfloat16 or float16");
  }
}

void check(const char* name, const Tensor& tensor, int64_t size, ScalarType type) {
  STD_TORCH_CHECK(tensor.numel() == size && tensor.is_contiguous() && tensor.scalar_type() == type,
                  "optimizer_step_: expected ", name, " contiguous, of ", size, " numbers of its type");
}

Rule rule_of(const std::string& name) {
  if (name == "adam") return Rule::kAdam;
  if (name == "lion") return Rule::kLion;
  STD_TORCH_CHECK(name == "ademamix", "optimizer_step_: rule is ", name, ", expected adam, lion or ademamix");
  return Rule::kAdemamix;
}

// The states of one tensor, one after another; the maps have to outlive the step.
void add_states(State* to, int64_t count, int64_t size, const char* name, const Tensor& state,
                const std::optional<Tensor>& scales, const std::optional<Tensor>& map, bool with_sign,
                DynamicMap& numbers) {
  if (state.scalar_type() == ScalarType::Float) {
    check(name, state, count * size, ScalarType::Float);
    for (int64_t k = 0; k < count; ++k)
      to[k] = {nullptr, nullptr, static_cast<float*>(state.mutable_data_ptr()) + k * size, nullptr};
    return;
  }
  const int64_t blocks = (size + kBlock - 1) / kBlock;
  check(name, state, count * size, ScalarType::Byte);
  STD_TORCH_CHECK(scales && map, "optimizer_step_: expected scales and a map with the codes of ", name);
  check("scales", *scales, count * blocks, ScalarType::Float);
  check("map", *map, kCodes, ScalarType::Float);
  STD_TORCH_CHECK(numbers.build(static_cast<const float*>(map->const_data_ptr()), with_sign),
                  "optimizer_step_: the map of ", name, " is not bitsandbytes' dynamic map");
  for (int64_t k = 0; k < count; ++k)
    to[k] = {static_cast<uint8_t*>(state.mutable_data_ptr()) + k * size,
             static_cast<float*>(scales->mutable_data_ptr()) + k * blocks, nullptr, &numbers};
}

// Gives how many numbers were left as they were, their gradient being none.
int64_t optimizer_step_(std::string rule, Tensor parameter, Tensor gradient, Tensor state1,
                        std::optional<Tensor> state2, std::optional<Tensor> absmax1, std::optional<Tensor> absmax2,
                        std::optional<Tensor> qmap1, std::optional<Tensor> qmap2, std::optional<Tensor> copy, double lr,
                        double beta1, double beta2, double beta3, double alpha, double eps, double weight_decay,
                        int64_t step, double gradient_scale) {
  const int64_t size = parameter.numel();
  Step s{};
  s.rule = rule_of(rule);
  s.size = size;
  s.parameter_kind = number_of("parameter", parameter);
  s.gradient_kind = number_of("gradient", gradient);
  check("parameter", parameter, size, parameter.scalar_type());
  check("gradient", gradient, size, gradient.scalar_type());
  s.parameter = parameter.mutable_data_ptr();
  s.gradient = gradient.const_data_ptr();
  if (copy) {
    check("copy", *copy, size, ScalarType::BFloat16);
    s.copy = static_cast<uint16_t*>(copy->mutable_data_ptr());
  }
  DynamicMap with_sign, without;
  State of_first[2];
  add_states(of_first, s.rule == Rule::kAdemamix ? 2 : 1, size, "state1", state1, absmax1, qmap1, true, with_sign);
  s.states[0] = of_first[0];
  if (s.rule != Rule::kLion) {
    STD_TORCH_CHECK(state2 && state2->scalar_type() == state1.scalar_type(),
                    "optimizer_step_: expected state2 of state1's type");
    add_states(&s.states[1], 1, size, "state2", *state2, absmax2, qmap2, false, without);
  }
  if (s.rule == Rule::kAdemamix) s.states[2] = of_first[1];
  s.beta1 = static_cast<float>(beta1);
  s.beta2 = static_cast<float>(beta2);
  s.beta3 = static_cast<float>(beta3);
  // The gradient's scale goes into what its average, or that of its squares, takes of it.
  const double of_second = s.rule == Rule::kLion ? gradient_scale : gradient_scale * gradient_scale;
  s.rest1 = static_cast<float>((1.0 - beta1) * gradient_scale);
  s.rest2 = static_cast<float>((1.0 - beta2) * of_second);
  s.rest3 = static_cast<float>((1.0 - beta3) * gradient_scale);
  s.alpha = static_cast<float>(alpha);
  s.decay = static_cast<float>(1.0 - lr * weight_decay);
  const double correction = 1.0 - std::pow(beta1, step), root_correction = 1.0 / std::sqrt(1.0 - std::pow(beta2, step));
  const double rate = s.rule == Rule::kAdam ? lr / correction : lr;
  s.mix_correction = static_cast<float>(1.0 / correction);
  s.rate = static_cast<float>(rate);
  // rate * m / (root + eps) is one operation less as m / (root / rate + eps / rate).
  s.root_correction = static_cast<float>(root_correction / rate);
  s.eps = static_cast<float>(eps / rate);
  if (!std::isfinite(s.root_correction) || !std::isfinite(s.eps)) {  // a rate of 0, or next to it: no step
    s.root_correction = 0.0f;
    s.eps = std::numeric_limits<float>::infinity();
  }
  std::atomic<int64_t> left{0};
  // Threads take what is left to do, not equal parts: a core that does other work too would have all wait for it.
  const int64_t blocks = (size + kBlock - 1) / kBlock;
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, blocks, kShare, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(kShare)) < blocks;)
      left += step_blocks(s, begin, std::min(begin + kShare, blocks));
  });
  return left;
}

// Elements whose squares are summed in one go: the order of the sums does not depend on the threads.
constexpr int64_t kPart = 1 << 14;

template <class T>
FANGYAN_INLINE double squares(const T* from, int64_t size) {
  constexpr int64_t kLanes = 16;
  double sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) {
      const double x = widened(from[i + j]);
      sums[j] += x * x;
    }
  for (int64_t j = 0; i + j < size; ++j) {
    const double x = widened(from[i + j]);
    sums[j] += x * x;
  }
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

FANGYAN_CLONES double squares_of(const float* from, int64_t size) { return squares(from, size); }
FANGYAN_CLONES double squares_of(const uint16_t* from, int64_t size) { return squares(from, size); }

double sum_of_squares(std::vector<Tensor> tensors) {
  double total = 0.0;
  for (const Tensor& tensor : tensors) {
    const bool narrow = tensor.scalar_type() == ScalarType::BFloat16;
    STD_TORCH_CHECK(tensor.is_contiguous() && (narrow || tensor.scalar_type() == ScalarType::Float),
                    "sum_of_squares: expected contiguous tensors in float32 or bfloat16");
    const int64_t size = tensor.numel(), parts = (size + kPart - 1) / kPart;
    std::vector<double> sums(parts);
    torch::stable::parallel_for(0, parts, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t start = i * kPart, count = std::min(kPart, size - start);
        sums[i] = narrow ? squares_of(static_cast<const uint16_t*>(tensor.const_data_ptr()) + start, count)
                         : squares_of(static_cast<const float*>(tensor.const_data_ptr()) + start, count);
      }
    });
    for (const double sum : sums) total += sum;
  }
  return total;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fangyan, CPU, m) {
  m.impl("optimizer_step_", TORCH_BOX(&optimizer_step_));
  m.impl("sum_of_squares", TORCH_BOX(&sum_of_squares));
}
