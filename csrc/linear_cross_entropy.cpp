// A linear head with softmax cross-entropy, and its gradients, one chunk of tokens at a time.
//
//   z_tc   = s (sum_h input_th weight_ch + bias_c),  capped as cap tanh(z / cap) if there is a cap
//   loss_t = u_t ((1 - eps) w_y (lse - z_y) + eps / C sum_c w_c (lse - z_c) + z_loss lse^2)
//   g_tc   = u_t s / divisor ((S + 2 z_loss lse) p_tc - (1 - eps) w_y [c = y] - eps w_c / C)
//
// with s the scale of the logits, y the target, lse = log sum_c exp z_tc, p = softmax z, S = (1 - eps) w_y + eps / C
// sum_c w_c; a cap's derivative multiplies g. Then
// grad_input = g weight, grad_weight = g' input: three matrix products, 6 T H C operations over the valid tokens
// (those that are not ignored). Reads input and weight and writes their gradients once; grad_weight is read and written
// again per chunk. A chunk's logits are meant to stay in the last-level cache and are overwritten by their gradients,
// so that no T x C matrix exists. The products are those of the libtorch that it runs in; everything is accumulated in
// float32.
//
// T tokens, H hidden, C classes; R tokens of a chunk.

#include "linear_cross_entropy.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "linear_cross_entropy_gradients.h"
#include "linear_cross_entropy_tensors.h"
#include "tensors.h"

namespace fangyan::linear_cross_entropy {
namespace {

// Returns the number of classes up to which the tiles are faster than a library's products. Measured on AMD's Zen 3,
// and on an Intel processor with 512-bit vectors, where MKL is at its best (two cores, 8,192 tokens: 188 classes of 256
// inputs took 11.6 ms by tiles and 9.4 by MKL, 32 of 768 took 9.3 and 6.8; 2,048 tokens, 9 of 768: 1.4 and 2.3).
int64_t max_small_vocab() {
#if defined(__x86_64__)
  static const bool is_wide_intel = __builtin_cpu_is("intel") && __builtin_cpu_supports("avx512f");
  if (is_wide_intel) return 16;
#endif
  return 256;
}

// Bytes of a chunk's logits: large enough for the products' speed, small enough for the last-level cache.
constexpr int64_t kChunkBytes = 44 << 20;

// Returns whether the products also take the ignored tokens, whose gradients are rows of zeros. Leaving them out
// gathers the others' input and scatters its gradient, which takes as long as the products of kClassesPerCopy classes
// (two cores with AVX512-BF16, 8,192 tokens, 9 classes of 768 inputs, 15% ignored: 5.0 ms, and 3.5 with them).
bool keeps_ignored(int64_t num_valid, int64_t tokens, int64_t classes, float gradient_filter) {
  constexpr int64_t kClassesPerCopy = 40;
  return gradient_filter == 0.0f && classes * (tokens - num_valid) <= kClassesPerCopy * num_valid;
}

std::vector<int64_t> valid_tokens(const Tensor& target_T, int64_t classes, int64_t ignore_index) {
  std::vector<int64_t> tokens;
  tokens.reserve(target_T.numel());
  const int64_t* target = const_data<int64_t>(target_T);
  for (int64_t t = 0; t < target_T.numel(); ++t) {
    if (target[t] == ignore_index) continue;
    STD_TORCH_CHECK(target[t] >= 0 && target[t] < classes, "linear_cross_entropy: target[", t, "] is ", target[t],
                    ", expected a class in [0, ", classes, ") or ignore_index ", ignore_index);
    tokens.push_back(t);
  }
  return tokens;
}

void check(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& target,
           const std::optional<Tensor>& class_weight, const std::optional<Tensor>& token_weight,
           const std::optional<Tensor>& divisor) {
  const ScalarType dtype = input.scalar_type();
  STD_TORCH_CHECK(input.dim() == 2 && weight.dim() == 2 && target.dim() == 1 && input.size(1) == weight.size(1) &&
                      input.size(0) == target.size(0),
                  "linear_cross_entropy: expected input (T, H), weight (C, H) and target (T)");
  STD_TORCH_CHECK((dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half) &&
                      weight.scalar_type() == dtype && target.scalar_type() == ScalarType::Long,
                  "linear_cross_entropy: expected input and weight of one dtype, float32, bfloat16 or float16, and an "
                  "int64 target");
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->scalar_type() == dtype),
                  "linear_cross_entropy: expected a bias (C) of input's dtype");
  const auto is_float = [](const std::optional<Tensor>& tensor, int64_t dim, int64_t size) {
    return !tensor || (tensor->scalar_type() == ScalarType::Float && tensor->dim() == dim && tensor->numel() == size);
  };
  STD_TORCH_CHECK(
      is_float(class_weight, 1, weight.size(0)) && is_float(token_weight, 1, input.size(0)) && is_float(divisor, 0, 1),
      "linear_cross_entropy: expected float32 class weights (C), token weights (T) and divisor ()");
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(*tensor);
}

std::optional<Tensor> as_float(const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(torch::stable::to(*tensor, ScalarType::Float));
}

double total_weight(const std::vector<int64_t>& tokens, const int64_t* target, const float* class_weight,
                    const float* token_weight) {
  double total = 0.0;
  for (const int64_t t : tokens)
    total += static_cast<double>(class_weight ? class_weight[target[t]] : 1.0f) *
             static_cast<double>(token_weight ? token_weight[t] : 1.0f);
  return total == 0.0 ? 1.0 : total;
}

double sum_of_class_weights(const float* class_weight, int64_t classes) {
  return class_weight ? std::accumulate(class_weight, class_weight + classes, 0.0) : static_cast<double>(classes);
}

// Returns a copy in which the input of ignored tokens is 0: where it is not finite, their gradient of 0 would not keep
// it out of the sums.
Tensor without_ignored(const LogitsChunk& k, const Tensor& input_RH) {
  const int64_t rows = input_RH.size(0), bytes = bytes_per_row(input_RH);
  Tensor clean = torch::stable::new_empty(input_RH, {rows, input_RH.size(1)});
  copy_rows(input_RH, nullptr, clean, nullptr, rows);
  for (int64_t r = 0; r < rows; ++r)
    if (k.target_T[k.token_R[r]] == k.options.ignore_index)
      std::memset(mutable_data<char>(clean) + r * bytes, 0, bytes);
  return clean;
}

// Returns the tokens of a chunk: all chunks are of one size, and the last may be smaller.
int64_t chunk_tokens(const LogitsChunk& k, int64_t count) {
  // The fewer tokens a chunk has, the fewer classes any of them needs, and the more a filter drops.
  const int64_t bytes = k.options.gradient_filter > 0.0f ? kChunkBytes / 2 : kChunkBytes;
  const int64_t most = std::max<int64_t>(16, bytes / (4 * std::max<int64_t>(k.classes, 1)));
  const int64_t chunks = (count + most - 1) / most;
  return chunks ? (count + chunks - 1) / chunks : 0;
}

// Logits, loss and gradients of the `count` tokens of k.token_R, one chunk at a time.
void add_chunks(LogitsChunk k, const Tensor& input_TH, int64_t count, Gradients& gradients) {
  const Tensor& weight_CH = gradients.weight();
  const bool takes_all = count == input_TH.size(0), is_half = input_TH.scalar_type() != ScalarType::Float;
  const int64_t hidden = input_TH.size(1), size = chunk_tokens(k, count);
  Tensor logits = empty_on_huge_pages(input_TH, {size, k.classes}, ScalarType::Float);
  Tensor gathered = empty_on_huge_pages(input_TH, {takes_all ? 0 : size, hidden}, input_TH.scalar_type());
  const int64_t* token = k.token_R;
  Tensor source = takes_all ? input_TH : gathered;
  for (int64_t start = 0; start < count; start += size) {
    const int64_t rows = std::min(size, count - start);
    k.token_R = token + start;
    Tensor input_RH = torch::stable::narrow(source, 0, takes_all ? start : 0, rows);
    if (!takes_all) copy_rows(input_TH, k.token_R, input_RH, nullptr, rows);
    Tensor logits_RC = torch::stable::narrow(logits, 0, 0, rows);
    if (is_half)
      torch::stable::copy_(logits_RC, torch::stable::matmul(input_RH, transposed(weight_CH)));
    else
      mm_out(logits_RC, input_RH, transposed(weight_CH));
    k.logits_RC = mutable_data<float>(logits_RC);
    std::atomic<bool> ignored_not_finite{false};
    const int64_t grain = std::max<int64_t>(1, (1 << 14) / k.classes);
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      if (FANGYAN_DISPATCH(loss_rows)(k, begin, end)) ignored_not_finite = true;
    });
    if (k.with_gradients)
      gradients.add_chunk(k, logits_RC, ignored_not_finite ? without_ignored(k, input_RH) : input_RH, start);
  }
}

Tensor reduced(const Tensor& loss_T, const std::string& reduction, double divisor) {
  if (reduction == "none") return loss_T;
  const double sum = std::accumulate(const_data<float>(loss_T), const_data<float>(loss_T) + loss_T.numel(), 0.0);
  Tensor loss = torch::stable::new_empty(loss_T, {});
  *mutable_data<float>(loss) = static_cast<float>(sum / divisor);
  return loss;
}

Tensor scalar(const Tensor& like, int64_t value) {
  Tensor tensor = torch::stable::new_empty(like, {});
  *mutable_data<int64_t>(tensor) = value;
  return tensor;
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Results forward(Tensor input_TH, Tensor weight_CH, std::optional<Tensor> bias_C, Tensor target_T,
                std::optional<Tensor> class_weight_C, std::optional<Tensor> token_weight_T,
                std::optional<Tensor> divisor, std::string reduction, int64_t ignore_index, double label_smoothing,
                double z_loss, double logit_scale, double softcap, double gradient_filter,
                std::optional<int64_t> /*max_valid: counted here*/, std::string variant, bool predict,
                bool wants_grad_input, bool wants_grad_weight, bool wants_grad_bias) {
  check(input_TH, weight_CH, bias_C, target_T, class_weight_C, token_weight_T, divisor);
  const int64_t tokens = input_TH.size(0), classes = weight_CH.size(0);
  input_TH = torch::stable::contiguous(input_TH);
  weight_CH = torch::stable::contiguous(weight_CH);
  target_T = torch::stable::contiguous(target_T);
  bias_C = as_float(bias_C);
  class_weight_C = contiguous(class_weight_C);
  token_weight_T = contiguous(token_weight_T);
  const float *class_weight = const_data<float>(class_weight_C), *token_weight = const_data<float>(token_weight_T);
  const int64_t* target = const_data<int64_t>(target_T);

  std::vector<int64_t> taken = valid_tokens(target_T, classes, ignore_index);
  const int64_t num_valid = static_cast<int64_t>(taken.size());
  double total = 1.0;
  if (reduction == "mean")
    total = divisor ? *const_data<float>(*divisor) : total_weight(taken, target, class_weight, token_weight);
  const bool is_float = input_TH.scalar_type() == ScalarType::Float;
  const bool by_tiles =
      num_valid > 0 && is_float && (variant == "small_vocab" || (variant == "auto" && classes <= max_small_vocab()));
  if (!by_tiles && keeps_ignored(num_valid, tokens, classes, static_cast<float>(gradient_filter))) {
    taken.resize(tokens);
    std::iota(taken.begin(), taken.end(), 0);
  }

  Gradients gradients(input_TH, weight_CH, wants_grad_input, wants_grad_weight, wants_grad_bias, taken);
  Tensor loss_T = torch::stable::new_zeros(input_TH, {tokens}, ScalarType::Float);
  Tensor prediction_T = torch::stable::new_empty(target_T, {predict ? tokens : 0});
  if (predict) torch::stable::fill_(prediction_T, static_cast<double>(ignore_index));
  std::vector<uint8_t> is_correct(tokens);
  const LogitsChunk chunk{.logits_RC = nullptr,
                          .bias_C = const_data<float>(bias_C),
                          .class_weight_C = class_weight,
                          .token_R = taken.data(),
                          .target_T = target,
                          .token_weight_T = token_weight,
                          .classes = classes,
                          .class_weight_sum = static_cast<float>(sum_of_class_weights(class_weight, classes)),
                          .scale = static_cast<float>(logit_scale / total),
                          .with_gradients = gradients.any_wanted(),
                          .with_predictions = predict,
                          .options = {.ignore_index = ignore_index,
                                      .smoothing = static_cast<float>(label_smoothing),
                                      .z_loss = static_cast<float>(z_loss),
                                      .logit_scale = static_cast<float>(logit_scale),
                                      .softcap = static_cast<float>(softcap),
                                      .gradient_filter = static_cast<float>(gradient_filter)},
                          .loss_T = mutable_data<float>(loss_T),
                          .prediction_T = mutable_data<int64_t>(prediction_T),
                          .is_correct_T = is_correct.data()};
  if (by_tiles)
    gradients.add_tiles(chunk, input_TH);
  else
    add_chunks(chunk, input_TH, static_cast<int64_t>(taken.size()), gradients);

  const int64_t num_correct = std::count(is_correct.begin(), is_correct.end(), 1);
  return {reduced(loss_T, reduction, total),
          scalar(target_T, num_valid),
          scalar(target_T, num_correct),
          prediction_T,
          gradients.grad_input(),
          gradients.grad_weight(),
          gradients.grad_bias()};
}

// Multiplies the gradients in place; does nothing where the scale is 1.
void scale_gradients_(Tensor first, Tensor second, Tensor third, Tensor scale) {
  const Tensor factor = torch::stable::to(scale, ScalarType::Float);
  if (*const_data<float>(factor) == 1.0f) return;
  for (Tensor* gradient : {&first, &second, &third}) {
    std::array<StableIValue, 2> stack{torch::stable::detail::from(*gradient), torch::stable::detail::from(scale)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul_", "Tensor", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);  // owns the returned handle
  }
}

}  // namespace
}  // namespace fangyan::linear_cross_entropy

STABLE_TORCH_LIBRARY_IMPL(fangyan, CPU, m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&fangyan::linear_cross_entropy::forward));
  m.impl("scale_gradients_", TORCH_BOX(&fangyan::linear_cross_entropy::scale_gradients_));
}
