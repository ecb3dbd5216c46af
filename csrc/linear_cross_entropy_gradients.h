// The gradients of a linear head, accumulated while linear_cross_entropy.cpp goes through its tokens.
//
// T tokens, H hidden, C classes; R tokens of a chunk, K classes that a gradient filter keeps of C.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/macros/Export.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "linear_cross_entropy.h"
#include "linear_cross_entropy_tensors.h"
#include "tensors.h"

namespace fangyan::linear_cross_entropy {

class C10_HIDDEN Gradients {  // as Tensor is
 public:
  // `tokens` are the indices of the T tokens that take part; those of the others are 0. It has to outlive this object.
  Gradients(const Tensor& input_TH, const Tensor& weight_CH, bool input, bool weight, bool bias,
            const std::vector<int64_t>& tokens)
      : weight_CH_(weight_CH),
        tokens_(tokens),
        all_take_part_(static_cast<int64_t>(tokens.size()) == input_TH.size(0)) {
    const int64_t classes = weight_CH.size(0), hidden = weight_CH.size(1);
    if (input) grad_input_TH_ = empty_on_huge_pages(input_TH, {input_TH.size(0), hidden}, input_TH.scalar_type());
    if (weight) weight_sum_CH_ = empty_on_huge_pages(weight_CH, {classes, hidden}, ScalarType::Float);
    if (bias) bias_sum_C_ = torch::stable::new_zeros(weight_CH, {classes}, ScalarType::Float);
    if (input && !all_take_part_) clear_other_tokens();
    if (weight && tokens.empty()) torch::stable::zero_(*weight_sum_CH_);
  }

  const Tensor& weight() const { return weight_CH_; }
  bool any_wanted() const { return grad_input_TH_ || weight_sum_CH_ || bias_sum_C_; }

  // Adds one chunk: grad_logits_RC are those of the tokens [start, start + R), whose input is input_RH.
  void add_chunk(const LogitsChunk& k, Tensor& grad_logits_RC, const Tensor& input_RH, int64_t start) {
    const int64_t rows = grad_logits_RC.size(0);
    if (bias_sum_C_) {
      float* total = mutable_data<float>(*bias_sum_C_);
      torch::stable::parallel_for(0, k.classes, kClassBlock, [&](int64_t begin, int64_t end) {
        FANGYAN_DISPATCH(add_columns)(k.logits_RC, rows, k.classes, begin, end, total);
      });
    }
    if (!grad_input_TH_ && !weight_sum_CH_) return;
    const std::vector<int64_t> classes = kept_classes(k, rows);
    if (classes.empty())
      add_products(grad_logits_RC, input_RH, weight_CH_, weight_sum_CH_, start, start == 0 ? 0.0 : 1.0);
    else
      add_kept_products(k, grad_logits_RC, input_RH, start, classes);
  }

  // Adds all tokens at once, one tile at a time, with their logits and losses. One task per thread: the order of the
  // sums, and so their last bits, depend on the number of threads and on nothing else.
  void add_tiles(const LogitsChunk& k, const Tensor& input_TH) {
    const int64_t hidden = weight_CH_.size(1), classes = k.classes;
    const matmul::PackedMatrix weight(const_data<float>(weight_CH_), classes, hidden);
    const SmallVocabArguments arguments{.chunk = k,
                                        .input_TH = const_data<float>(input_TH),
                                        .weight = &weight,
                                        .hidden = hidden,
                                        .num_valid = static_cast<int64_t>(tokens_.size()),
                                        .grad_input_TH = mutable_data<float>(grad_input_TH_)};
    const int64_t tiles = (arguments.num_valid + kTileTokens - 1) / kTileTokens;
    const int64_t tasks = std::min<int64_t>(tiles, torch::stable::get_num_threads());
    std::vector<SmallVocabWorkspace> workspaces(tasks);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        SmallVocabWorkspace& own = workspaces[i];
        own.logits_RC.resize(kTileTokens * classes);
        own.unused_row.resize(weight.padded_columns);
        if (weight_sum_CH_) own.grad_weight_CH.resize(weight.sum_size());
        if (bias_sum_C_) own.grad_bias_C.resize(classes);
        FANGYAN_DISPATCH(small_vocab_tiles)(arguments, i * tiles / tasks, (i + 1) * tiles / tasks, own);
      }
    });
    add_workspaces(workspaces, weight);
  }

  // Each is empty where it is not wanted.
  Tensor grad_input() const { return grad_input_TH_ ? *grad_input_TH_ : empty(); }
  Tensor grad_weight() const { return weight_sum_CH_ ? in_weight_dtype(*weight_sum_CH_) : empty(); }
  Tensor grad_bias() const { return bias_sum_C_ ? in_weight_dtype(*bias_sum_C_) : empty(); }

 private:
  void add_products(Tensor& grad_logits_RK, const Tensor& input_RH, const Tensor& weight_KH,
                    std::optional<Tensor>& sum_KH, int64_t start, double beta) {
    const ScalarType dtype = weight_KH.scalar_type();
    const bool is_half = dtype != ScalarType::Float;
    const Tensor grad_logits = is_half ? torch::stable::to(grad_logits_RK, dtype) : grad_logits_RK;
    if (grad_input_TH_) store_grad_input(grad_logits, weight_KH, start);
    if (!sum_KH) return;
    if (dtype != ScalarType::BFloat16) {
      addmm_out(*sum_KH, transposed(grad_logits_RK),
                is_half ? torch::stable::to(input_RH, ScalarType::Float) : input_RH, beta);
      return;
    }
    // PyTorch's bfloat16 product sums in float32 and rounds once per chunk. With the processor's own instructions it is
    // several times as fast as one in float32.
    const Tensor product = torch::stable::matmul(transposed(grad_logits), input_RH);
    if (beta == 0.0)
      torch::stable::copy_(*sum_KH, product);
    else
      add_(*sum_KH, product);
  }

  void store_grad_input(const Tensor& grad_logits_RK, const Tensor& weight_KH, int64_t start) {
    const int64_t rows = grad_logits_RK.size(0);
    if (all_take_part_) {
      Tensor chunk_RH = torch::stable::narrow(*grad_input_TH_, 0, start, rows);
      mm_out(chunk_RH, grad_logits_RK, weight_KH);
      return;
    }
    Tensor chunk_RH = torch::stable::new_empty(weight_KH, {rows, weight_KH.size(1)});
    mm_out(chunk_RH, grad_logits_RK, weight_KH);
    copy_rows(chunk_RH, nullptr, *grad_input_TH_, tokens_.data() + start, rows);
  }

  // Returns the classes that the filter keeps; none where there is no filter or it keeps most of them.
  std::vector<int64_t> kept_classes(const LogitsChunk& k, int64_t rows) const {
    std::vector<int64_t> kept;
    if (k.options.gradient_filter == 0.0f) return kept;
    std::vector<uint8_t> is_marked(k.classes);
    torch::stable::parallel_for(0, k.classes, kClassBlock, [&](int64_t begin, int64_t end) {
      FANGYAN_DISPATCH(mark_columns)(k, rows, begin, end, is_marked.data());
    });
    for (int64_t c = 0; c < k.classes; ++c)
      if (is_marked[c]) kept.push_back(c);
    if (2 * static_cast<int64_t>(kept.size()) > k.classes) kept.clear();
    return kept;
  }

  // Gathers the kept classes, which are few, for the products, and scatters the weight's gradient.
  void add_kept_products(const LogitsChunk& k, const Tensor& grad_logits_RC, const Tensor& input_RH, int64_t start,
                         const std::vector<int64_t>& classes) {
    if (weight_sum_CH_ && start == 0) torch::stable::zero_(*weight_sum_CH_);
    const int64_t rows = grad_logits_RC.size(0), kept = static_cast<int64_t>(classes.size());
    Tensor grad_logits_RK = torch::stable::new_empty(grad_logits_RC, {rows, kept});
    float* target = mutable_data<float>(grad_logits_RK);
    torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        for (int64_t i = 0; i < kept; ++i) target[r * kept + i] = k.logits_RC[r * k.classes + classes[i]];
    });
    Tensor weight_KH = torch::stable::new_empty(weight_CH_, {kept, weight_CH_.size(1)});
    copy_rows(weight_CH_, classes.data(), weight_KH, nullptr, kept);
    std::optional<Tensor> sum_KH;
    if (weight_sum_CH_) sum_KH = torch::stable::new_empty(grad_logits_RC, {kept, weight_CH_.size(1)});
    add_products(grad_logits_RK, input_RH, weight_KH, sum_KH, start, 0.0);
    if (sum_KH) add_weight_rows(*sum_KH, classes);
  }

  void add_weight_rows(const Tensor& from_KH, const std::vector<int64_t>& classes) {
    const int64_t hidden = from_KH.size(1);
    const float* from = const_data<float>(from_KH);
    float* to = mutable_data<float>(*weight_sum_CH_);
    torch::stable::parallel_for(0, static_cast<int64_t>(classes.size()), 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t h = 0; h < hidden; ++h) to[classes[i] * hidden + h] += from[i * hidden + h];
    });
  }

  void add_workspaces(const std::vector<SmallVocabWorkspace>& workspaces, const matmul::PackedMatrix& weight) {
    float* bias_sum = mutable_data<float>(bias_sum_C_);
    float* weight_sum = mutable_data<float>(weight_sum_CH_);
    for (int64_t c = 0; c < weight.rows; ++c) {
      if (bias_sum)
        for (const SmallVocabWorkspace& own : workspaces) bias_sum[c] += own.grad_bias_C[c];
      if (!weight_sum) continue;
      float* row = weight_sum + c * weight.columns;
      for (size_t i = 0; i < workspaces.size(); ++i)
        for (int64_t h = 0; h < weight.columns; ++h) {
          const float partial = workspaces[i].grad_weight_CH[c * weight.padded_columns + h];
          row[h] = i == 0 ? partial : row[h] + partial;
        }
    }
  }

  // Sets the input's gradient to 0 between the tokens that take part.
  void clear_other_tokens() {
    const int64_t tokens = grad_input_TH_->size(0), bytes = bytes_per_row(*grad_input_TH_);
    char* rows = mutable_data<char>(*grad_input_TH_);
    int64_t next = 0;
    for (size_t i = 0; i <= tokens_.size(); ++i) {
      const int64_t token = i < tokens_.size() ? tokens_[i] : tokens;
      if (token > next) std::memset(rows + next * bytes, 0, (token - next) * bytes);
      next = token + 1;
    }
  }

  Tensor in_weight_dtype(const Tensor& sum) const { return torch::stable::to(sum, weight_CH_.scalar_type()); }
  Tensor empty() const { return torch::stable::new_empty(weight_CH_, {0}); }

  Tensor weight_CH_;
  const std::vector<int64_t>& tokens_;
  bool all_take_part_;
  std::optional<Tensor> grad_input_TH_, weight_sum_CH_, bias_sum_C_;
};

}  // namespace fangyan::linear_cross_entropy
