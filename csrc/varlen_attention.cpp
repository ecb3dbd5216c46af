// Attention within each of many sequences that lie side by side, and its gradients, on the CPU.
//
//   s_ij = scale q_i . k_j,  p_i = softmax_j s_ij over the keys that i sees,  y_i = sum_j p_ij v_j
//   dv_j = sum_i p_ij g_i,  dp_ij = g_i . v_j,  ds_ij = p_ij (dp_ij - sum_j p_ij dp_ij)
//   dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i
//
// 4 H D sum_s L_s^2 operations forward and 10 backward (half of them where tokens see only the past), in place of
// T W for a mask over rows of W tokens. Reads q, k and v and writes y once; the backward computes the probabilities
// again and reads q, k, v and g. Everything is computed in float32, whatever the inputs' dtype.
//
// A task is one sequence and one head of keys and values, computed by one thread: results do not depend on the number
// of threads.
//
// T tokens, H heads, G heads of keys and values, D elements per head; L tokens of a sequence.

#include "varlen_attention.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <tuple>

#include "tensors.h"

namespace fangyan::varlen_attention {
namespace {

void check(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& offsets) {
  const ScalarType dtype = query.scalar_type();
  STD_TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && value.dim() == 3 && query.size(0) == key.size(0) &&
                      query.size(2) == key.size(2) && key.size(0) == value.size(0) && key.size(1) == value.size(1) &&
                      key.size(2) == value.size(2) && key.size(1) > 0 && query.size(1) % key.size(1) == 0,
                  "varlen_attention: expected query (T, H, D) and key and value (T, G, D), H a multiple of G");
  STD_TORCH_CHECK((dtype == ScalarType::Float || dtype == ScalarType::BFloat16) && key.scalar_type() == dtype &&
                      value.scalar_type() == dtype,
                  "varlen_attention: expected query, key and value of one dtype, float32 or bfloat16");
  STD_TORCH_CHECK(
      offsets.dim() == 1 && offsets.numel() > 0 && offsets.scalar_type() == ScalarType::Int && offsets.is_contiguous(),
      "varlen_attention: expected contiguous int32 offsets (sequences + 1)");
}

// Checks the offsets and returns the length of the longest sequence.
int64_t longest_sequence(const Tensor& offsets, int64_t tokens) {
  const auto* offset = const_data<int32_t>(offsets);
  const int64_t sequences = offsets.numel() - 1;
  int64_t longest = 0;
  for (int64_t i = 0; i < sequences; ++i) {
    STD_TORCH_CHECK(offset[i + 1] >= offset[i], "varlen_attention: offsets[", i + 1, "] is ", offset[i + 1],
                    ", expected no less than offsets[", i, "], ", offset[i]);
    longest = std::max<int64_t>(longest, offset[i + 1] - offset[i]);
  }
  STD_TORCH_CHECK(offset[0] == 0 && offset[sequences] == tokens, "varlen_attention: offsets run from ", offset[0],
                  " to ", offset[sequences], ", expected from 0 to the ", tokens, " tokens");
  return longest;
}

Tensor with_contiguous_heads(const Tensor& tensor) {
  return tensor.stride(2) == 1 || tensor.size(2) == 1 ? tensor : torch::stable::contiguous(tensor);
}

template <class T>
HeadsView<const T> const_view(const Tensor& tensor) {
  return {.data = const_data<T>(tensor), .token_stride = tensor.stride(0), .head_stride = tensor.stride(1)};
}

template <class T>
HeadsView<T> mutable_view(Tensor& tensor) {
  return {.data = mutable_data<T>(tensor), .token_stride = tensor.stride(0), .head_stride = tensor.stride(1)};
}

template <class T>
Arguments<T> arguments(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& offsets, int64_t left,
                       int64_t right, double scale, int64_t longest) {
  return {.query = const_view<T>(query),
          .key = const_view<T>(key),
          .value = const_view<T>(value),
          .offsets = const_data<int32_t>(offsets),
          .heads = query.size(1),
          .key_heads = key.size(1),
          .head_size = query.size(2),
          .left = left < 0 ? longest : std::min(left, longest),
          .right = right < 0 ? longest : std::min(right, longest),
          .scale = static_cast<float>(scale)};
}

// Threads take one task after another: sequences differ in length, and their work by its square.
template <class T>
void run(const Arguments<T>& k, int64_t sequences, int64_t longest) {
  const int64_t tasks = sequences * k.key_heads;
  const int64_t threads = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      Workspace own(longest, k.head_size, k.grad.data != nullptr);
      for (int64_t task = next++; task < tasks; task = next++)
        FANGYAN_DISPATCH(attend<T>)(k, task / k.key_heads, task % k.key_heads, own);
    }
  });
}

Tensor forward(Tensor query_THD, Tensor key_TGD, Tensor value_TGD, Tensor offsets, int64_t left, int64_t right,
               double scale) {
  check(query_THD, key_TGD, value_TGD, offsets);
  const int64_t tokens = query_THD.size(0), longest = longest_sequence(offsets, tokens);
  for (Tensor* tensor : {&query_THD, &key_TGD, &value_TGD}) *tensor = with_contiguous_heads(*tensor);
  Tensor output = torch::stable::new_empty(query_THD, {tokens, query_THD.size(1), query_THD.size(2)});
  const auto compute = [&]<class T>(T) {
    auto k = arguments<T>(query_THD, key_TGD, value_TGD, offsets, left, right, scale, longest);
    k.output = mutable_view<T>(output);
    run(k, offsets.numel() - 1, longest);
  };
  query_THD.scalar_type() == ScalarType::Float ? compute(float{}) : compute(uint16_t{});
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_THD, Tensor query_THD, Tensor key_TGD, Tensor value_TGD,
                                            Tensor offsets, int64_t left, int64_t right, double scale) {
  check(query_THD, key_TGD, value_TGD, offsets);
  check(grad_THD, key_TGD, value_TGD, offsets);
  const int64_t tokens = query_THD.size(0), longest = longest_sequence(offsets, tokens);
  for (Tensor* tensor : {&grad_THD, &query_THD, &key_TGD, &value_TGD}) *tensor = with_contiguous_heads(*tensor);
  Tensor grad_query = torch::stable::new_empty(query_THD, {tokens, query_THD.size(1), query_THD.size(2)});
  Tensor grad_key = torch::stable::new_empty(key_TGD, {tokens, key_TGD.size(1), key_TGD.size(2)});
  Tensor grad_value = torch::stable::new_empty(key_TGD, {tokens, key_TGD.size(1), key_TGD.size(2)});
  const auto compute = [&]<class T>(T) {
    auto k = arguments<T>(query_THD, key_TGD, value_TGD, offsets, left, right, scale, longest);
    k.grad = const_view<T>(grad_THD);
    k.grad_query = mutable_view<T>(grad_query);
    k.grad_key = mutable_view<T>(grad_key);
    k.grad_value = mutable_view<T>(grad_value);
    run(k, offsets.numel() - 1, longest);
  };
  query_THD.scalar_type() == ScalarType::Float ? compute(float{}) : compute(uint16_t{});
  return {grad_query, grad_key, grad_value};
}

}  // namespace
}  // namespace fangyan::varlen_attention

STABLE_TORCH_LIBRARY_IMPL(fangyan, CPU, m) {
  m.impl("varlen_attention", TORCH_BOX(&fangyan::varlen_attention::forward));
  m.impl("varlen_attention_backward", TORCH_BOX(&fangyan::varlen_attention::backward));
}
