// Attention within each of many sequences that lie side by side, and its gradients, on the CPU.
//
//   s_ij = scale q_i . k_j,  p_i = softmax_j s_ij over the keys that i sees,  y_i = sum_j p_ij v_j
//   dv_j = sum_i p_ij g_i,  dp_ij = g_i . v_j,  ds_ij = p_ij (dp_ij - sum_j p_ij dp_ij)
//   dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i
//
// 4 H D sum_s L_s^2 operations forward and 10 backward (half of them where tokens see the past alone): a mask over
// rows of W tokens takes T W in place of sum_s L_s^2. Reads q, k and v and writes y once; the backward computes the
// probabilities again and reads q, k, v and g. All in float32, whatever the inputs are.
//
// A task is a sequence and a head of keys and values, computed by one thread: results do not depend on how many
// threads there are.
//
// T tokens, H heads, G heads of keys and values, D numbers a head; L tokens of a sequence.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <tuple>

#include "attention_tiles.h"

namespace {

using namespace fangyan;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& offsets) {
  const ScalarType dtype = query.scalar_type();
  STD_TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && value.dim() == 3 && query.size(0) == key.size(0) &&
                      query.size(2) == key.size(2) && key.size(0) == value.size(0) && key.size(1) == value.size(1) &&
                      key.size(2) == value.size(2) && key.size(1) > 0 && query.size(1) % key.size(1) == 0,
                  "varlen_attention: expected query (T, H, D) and key and value (T, G, D), H a multiple of G");
  STD_TORCH_CHECK((dtype == ScalarType::Float || dtype == ScalarType::BFloat16) && key.scalar_type() == dtype &&
                      value.scalar_type() == dtype,
                  "varlen_attention: expected query, key and value of one dtype, float32 or bfloat16");
  STD_TORCH_CHECK(offsets.dim() == 1 && offsets.numel() > 0 && offsets.scalar_type() == ScalarType::Int &&
                      offsets.is_contiguous(),
                  "varlen_attention: expected contiguous int32 offsets (sequences + 1)");
}

// The longest of the sequences that the offsets bound.
int64_t longest_of(const Tensor& offsets, int64_t tokens) {
  const auto* offset = static_cast<const int32_t*>(offsets.const_data_ptr());
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
Heads<const T> reading(const Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
}

template <class T>
Heads<T> writing(Tensor& tensor) {
  return {static_cast<T*>(tensor.mutable_data_ptr()), tensor.stride(0), tensor.stride(1)};
}

template <class T>
Attention<T> attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& offsets, int64_t left,
                       int64_t right, double scale, int64_t longest) {
  return {reading<T>(query),
          reading<T>(key),
          reading<T>(value),
          static_cast<const int32_t*>(offsets.const_data_ptr()),
          query.size(1),
          key.size(1),
          query.size(2),
          left < 0 ? longest : std::min(left, longest),
          right < 0 ? longest : std::min(right, longest),
          static_cast<float>(scale),
          {},
          {},
          {},
          {},
          {}};
}

// Threads take tasks as they go: sequences differ in length, their work by its square.
template <class T>
void run(const Attention<T>& k, int64_t sequences, int64_t longest) {
  const int64_t tasks = sequences * k.key_heads;
  const int64_t threads = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      AttentionScratch scratch(longest, k.size, k.grad.data != nullptr);
      for (int64_t task = next++; task < tasks; task = next++)
        attend(k, task / k.key_heads, task % k.key_heads, scratch);
    }
  });
}

Tensor varlen_attention(Tensor query_THD, Tensor key_TGD, Tensor value_TGD, Tensor offsets, int64_t left,
                        int64_t right, double scale) {
  check(query_THD, key_TGD, value_TGD, offsets);
  const int64_t tokens = query_THD.size(0), longest = longest_of(offsets, tokens);
  for (Tensor* tensor : {&query_THD, &key_TGD, &value_TGD}) *tensor = with_contiguous_heads(*tensor);
  Tensor output = torch::stable::new_empty(query_THD, {tokens, query_THD.size(1), query_THD.size(2)});
  const auto compute = [&]<class T>(T) {
    Attention<T> k = attention<T>(query_THD, key_TGD, value_TGD, offsets, left, right, scale, longest);
    k.output = writing<T>(output);
    run(k, offsets.numel() - 1, longest);
  };
  query_THD.scalar_type() == ScalarType::Float ? compute(float{}) : compute(uint16_t{});
  return output;
}

std::tuple<Tensor, Tensor, Tensor> varlen_attention_backward(Tensor grad_THD, Tensor query_THD, Tensor key_TGD,
                                                             Tensor value_TGD, Tensor offsets, int64_t left,
                                                             int64_t right, double scale) {
  check(query_THD, key_TGD, value_TGD, offsets);
  check(grad_THD, key_TGD, value_TGD, offsets);
  const int64_t tokens = query_THD.size(0), longest = longest_of(offsets, tokens);
  for (Tensor* tensor : {&grad_THD, &query_THD, &key_TGD, &value_TGD}) *tensor = with_contiguous_heads(*tensor);
  Tensor grad_query = torch::stable::new_empty(query_THD, {tokens, query_THD.size(1), query_THD.size(2)});
  Tensor grad_key = torch::stable::new_empty(key_TGD, {tokens, key_TGD.size(1), key_TGD.size(2)});
  Tensor grad_value = torch::stable::new_empty(key_TGD, {tokens, key_TGD.size(1), key_TGD.size(2)});
  const auto compute = [&]<class T>(T) {
    Attention<T> k = attention<T>(query_THD, key_TGD, value_TGD, offsets, left, right, scale, longest);
    k.grad = reading<T>(grad_THD);
    k.grad_query = writing<T>(grad_query);
    k.grad_key = writing<T>(grad_key);
    k.grad_value = writing<T>(grad_value);
    run(k, offsets.numel() - 1, longest);
  };
  query_THD.scalar_type() == ScalarType::Float ? compute(float{}) : compute(uint16_t{});
  return {grad_query, grad_key, grad_value};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fangyan, CPU, m) {
  m.impl("varlen_attention", TORCH_BOX(&varlen_attention));
  m.impl("varlen_attention_backward", TORCH_BOX(&varlen_attention_backward));
}
