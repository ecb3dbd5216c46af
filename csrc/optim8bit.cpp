// Steps of AdamW, Lion and AdEMAMix with 8-bit states in blocks of 256 elements, in float32 arithmetic
// (Dettmers et al. 2022, arXiv 2110.02861; Loshchilov & Hutter 2019, 1711.05101; Chen et al. 2023, 2302.06675;
// Pagliardini et al. 2024, 2409.03137). reference.py, beside the op's Python, owns the meaning.
//
// AdamW in float32 moves 16 bytes per element: the parameter is read and written, the gradient read, two codes read and
// written; and a 256th of the scales. The loops have 79 instructions per eight elements with AVX2, 65 per sixteen with
// AVX-512: a Zen 4 core at 3.7 GHz then processes 17 or 23 GB/s, so that memory faster than that is not its bound.
//
// Blocks are independent: the result is the same, bit for bit, for any number of threads.

#include "optim8bit.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "tensors.h"

namespace fangyan::optim8bit {
namespace {

// Blocks that a thread takes at a time: about 50 us.
constexpr int64_t kBlocksPerTake = 256;

// Elements whose squares are summed by one thread, so that the order of the sums does not depend on the threads.
constexpr int64_t kSquaresPerSum = 1 << 14;

Dtype dtype_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kHalf;
    default:
      STD_TORCH_CHECK(false, "optimizer_step_: expected ", name, " in float32, bfloat16 or float16");
  }
}

void check(const char* name, const Tensor& tensor, int64_t size, ScalarType type) {
  STD_TORCH_CHECK(tensor.numel() == size && tensor.is_contiguous() && tensor.scalar_type() == type,
                  "optimizer_step_: expected ", name, " contiguous, of ", size, " elements of its type");
}

Algorithm algorithm_of(const std::string& name) {
  if (name == "adam") return Algorithm::kAdam;
  if (name == "lion") return Algorithm::kLion;
  STD_TORCH_CHECK(name == "ademamix", "optimizer_step_: algorithm is ", name, ", expected adam, lion or ademamix");
  return Algorithm::kAdemamix;
}

// Sets the states that a tensor holds one after another. The map, which it builds, has to outlive the step.
void set_states(State* to, int64_t count, int64_t size, const char* name, Tensor& state, std::optional<Tensor>& scales,
                const std::optional<Tensor>& values, bool with_sign, DynamicMap& map) {
  if (state.scalar_type() == ScalarType::Float) {
    check(name, state, count * size, ScalarType::Float);
    for (int64_t k = 0; k < count; ++k) to[k] = {.floats = mutable_data<float>(state) + k * size};
    return;
  }
  const int64_t blocks = (size + kBlock - 1) / kBlock;
  check(name, state, count * size, ScalarType::Byte);
  STD_TORCH_CHECK(scales && values, "optimizer_step_: expected scales and a map with the codes of ", name);
  check("scales", *scales, count * blocks, ScalarType::Float);
  check("map", *values, kCodes, ScalarType::Float);
  STD_TORCH_CHECK(map.build(const_data<float>(*values), with_sign), "optimizer_step_: the map of ", name,
                  " is not bitsandbytes' dynamic map");
  for (int64_t k = 0; k < count; ++k)
    to[k] = {.codes = mutable_data<uint8_t>(state) + k * size,
             .scales = mutable_data<float>(*scales) + k * blocks,
             .map = &map};
}

struct Hyperparameters {
  double lr, beta1, beta2, beta3, alpha, eps, weight_decay;
  int64_t step;
  double gradient_scale;
};

void set_factors(Arguments& s, const Hyperparameters& h) {
  s.beta1 = static_cast<float>(h.beta1);
  s.beta2 = static_cast<float>(h.beta2);
  s.beta3 = static_cast<float>(h.beta3);
  const bool is_lion = s.algorithm == Algorithm::kLion;
  const double second_scale = is_lion ? h.gradient_scale : h.gradient_scale * h.gradient_scale;
  s.gradient_factor1 = static_cast<float>((1.0 - h.beta1) * h.gradient_scale);
  s.gradient_factor2 = static_cast<float>((1.0 - h.beta2) * second_scale);
  s.gradient_factor3 = static_cast<float>((1.0 - h.beta3) * h.gradient_scale);
  s.alpha = static_cast<float>(h.alpha);
  s.decay = static_cast<float>(1.0 - h.lr * h.weight_decay);
  const double correction = 1.0 - std::pow(h.beta1, h.step);
  const double root_correction = 1.0 / std::sqrt(1.0 - std::pow(h.beta2, h.step));
  const double lr = s.algorithm == Algorithm::kAdam ? h.lr / correction : h.lr;
  s.mix_correction = static_cast<float>(1.0 / correction);
  s.lr = static_cast<float>(lr);
  // lr * m / (root + eps) is one operation less as m / (root / lr + eps / lr).
  s.root_correction = static_cast<float>(root_correction / lr);
  s.eps = static_cast<float>(h.eps / lr);
  if (!std::isfinite(s.root_correction) || !std::isfinite(s.eps)) {  // lr is 0, or next to it: no step
    s.root_correction = 0.0f;
    s.eps = std::numeric_limits<float>::infinity();
  }
}

// Threads take what is left to do, not equal shares: otherwise all would wait for a core that does other work too.
int64_t run(const Arguments& s) {
  const int64_t blocks = (s.size + kBlock - 1) / kBlock;
  std::atomic<int64_t> next{0}, num_skipped{0};
  torch::stable::parallel_for(0, blocks, kBlocksPerTake, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(kBlocksPerTake)) < blocks;)
      num_skipped += FANGYAN_DISPATCH_VBMI(step_blocks)(s, begin, std::min(begin + kBlocksPerTake, blocks));
  });
  return num_skipped;
}

// Returns the number of elements that are left as they were because their gradient is not finite.
int64_t step_(std::string algorithm, Tensor parameter, Tensor gradient, Tensor state1, std::optional<Tensor> state2,
              std::optional<Tensor> absmax1, std::optional<Tensor> absmax2, std::optional<Tensor> qmap1,
              std::optional<Tensor> qmap2, std::optional<Tensor> bf16_copy, double lr, double beta1, double beta2,
              double beta3, double alpha, double eps, double weight_decay, int64_t step, double gradient_scale) {
  const int64_t size = parameter.numel();
  check("parameter", parameter, size, parameter.scalar_type());
  check("gradient", gradient, size, gradient.scalar_type());
  if (bf16_copy) check("copy", *bf16_copy, size, ScalarType::BFloat16);
  Arguments s{.algorithm = algorithm_of(algorithm),
              .parameter = parameter.mutable_data_ptr(),
              .gradient = gradient.const_data_ptr(),
              .parameter_dtype = dtype_of("parameter", parameter),
              .gradient_dtype = dtype_of("gradient", gradient),
              .bf16_copy = mutable_data<uint16_t>(bf16_copy),
              .size = size};
  set_factors(s, {.lr = lr,
                  .beta1 = beta1,
                  .beta2 = beta2,
                  .beta3 = beta3,
                  .alpha = alpha,
                  .eps = eps,
                  .weight_decay = weight_decay,
                  .step = step,
                  .gradient_scale = gradient_scale});
  // AdEMAMix keeps its slow average behind the fast one, in state1.
  DynamicMap signed_map, unsigned_map;
  State from_state1[2];
  const int64_t count = s.algorithm == Algorithm::kAdemamix ? 2 : 1;
  set_states(from_state1, count, size, "state1", state1, absmax1, qmap1, true, signed_map);
  s.states[0] = from_state1[0];
  s.states[2] = from_state1[1];
  if (s.algorithm != Algorithm::kLion) {
    STD_TORCH_CHECK(state2 && state2->scalar_type() == state1.scalar_type(),
                    "optimizer_step_: expected state2 of state1's type");
    set_states(&s.states[1], 1, size, "state2", *state2, absmax2, qmap2, false, unsigned_map);
  }
  return run(s);
}

// Returns the sums of squares of a tensor's stretches of kSquaresPerSum elements.
std::vector<double> sums_of_squares(const Tensor& tensor) {
  const bool is_bfloat16 = tensor.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(tensor.is_contiguous() && (is_bfloat16 || tensor.scalar_type() == ScalarType::Float),
                  "sum_of_squares: expected contiguous tensors in float32 or bfloat16");
  const int64_t size = tensor.numel(), number = (size + kSquaresPerSum - 1) / kSquaresPerSum;
  std::vector<double> sums(number);
  torch::stable::parallel_for(0, number, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t start = i * kSquaresPerSum, count = std::min(kSquaresPerSum, size - start);
      sums[i] = is_bfloat16 ? FANGYAN_DISPATCH_VBMI(squares<uint16_t>)(const_data<uint16_t>(tensor) + start, count)
                            : FANGYAN_DISPATCH_VBMI(squares<float>)(const_data<float>(tensor) + start, count);
    }
  });
  return sums;
}

double sum_of_squares(std::vector<Tensor> tensors) {
  double total = 0.0;
  for (const Tensor& tensor : tensors)
    for (const double sum : sums_of_squares(tensor)) total += sum;
  return total;
}

}  // namespace
}  // namespace fangyan::optim8bit

STABLE_TORCH_LIBRARY_IMPL(fangyan, CPU, m) {
  m.impl("optimizer_step_", TORCH_BOX(&fangyan::optim8bit::step_));
  m.impl("sum_of_squares", TORCH_BOX(&fangyan::optim8bit::sum_of_squares));
}
