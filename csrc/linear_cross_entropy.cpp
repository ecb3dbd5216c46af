// A linear head with softmax cross-entropy, and its gradients, a chunk of tokens at a time.
//
//   z_tc   = sum_h input_th weight_ch + bias_c,  capped as cap tanh(z / cap) if there is a cap
//   loss_t = u_t ((1 - eps) w_y (lse - z_y) + eps / C sum_c w_c (lse - z_c) + z_loss lse^2)
//   g_tc   = u_t / divisor ((S + 2 z_loss lse) p_tc - (1 - eps) w_y [c = y] - eps w_c / C)
//
// with y the target, lse = log sum_c exp z_tc, p = softmax z, S = (1 - eps) w_y + eps / C sum_c w_c.
// Then grad_input = g weight, grad_weight = g' input: three matrix products, 6 T H C operations, of
// which labelled tokens alone take part. Reads input and weight and writes their gradients once, plus
// grad_weight read and written again a chunk; a chunk's logits are meant to stay in the last cache and
// are overwritten by their gradients, so that nothing of T x C is ever held. The products are those of
// the libtorch that it runs in; everything is accumulated in float32.
//
// T tokens, H hidden, C classes; R tokens of a chunk.

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "softmax_row.h"
#include "tag_tiles.h"

namespace {

using namespace fangyan;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Up to so many classes the tiles are faster than a library's products: as measured on AMD's Zen 3, and with the
// 512-bit vectors of an Intel processor, where MKL is at its best (two cores, 8,192 tokens: 188 classes of 256
// inputs 11.6 ms by tiles and 9.4 by MKL, 32 of 768 9.3 and 6.8; 2,048 tokens, 9 of 768: 1.4 and 2.3).
int64_t most_tags() {
#if defined(__x86_64__)
  static const bool wide_intel = __builtin_cpu_is("intel") && __builtin_cpu_supports("avx512f");
  if (wide_intel) return 16;
#endif
  return 256;
}

// Logits of a chunk: large enough for the products' speed, small enough for the last cache.
constexpr int64_t kChunkBytes = 44 << 20;

// Whether products take the ignored tokens along, as rows of zeros: to leave them out, the input of the others is
// gathered and its gradient scattered, which takes as long as the products of so many classes (two cores with
// AVX512-BF16, 8,192 tokens, 9 classes of 768 inputs, 15% ignored: 5.0 ms, and 3.5 with them).
bool takes_ignored(int64_t labelled, int64_t tokens, int64_t classes, float filter) {
  constexpr int64_t kClassesPerCopy = 40;
  return filter == 0.0f && classes * (tokens - labelled) <= kClassesPerCopy * labelled;
}

// Returns whether the input of an ignored token is not finite, as its logits then are not.
FANGYAN_CLONES bool rows(const Chunk& k, int64_t begin, int64_t end) {
  bool spoiled = false;
  for (int64_t r = begin; r < end; ++r) {
    float* z = k.logits_RC + r * k.classes;
    if (k.target_T[k.token_R[r]] != k.options.ignore_index) {
      row(k, r);
    } else {
      spoiled |= !std::isfinite(z[0]);
      std::fill_n(z, k.classes, 0.0f);
    }
  }
  return spoiled;
}

// total_c += sum_r g_rc for the classes [begin, end): in the order of the rows, whoever computes it, and in sums of
// kTile rows first: the rounding error grows with that number and with the number of sums, not with their product.
FANGYAN_CLONES void add_columns(const float* g_RC, int64_t count, int64_t classes, int64_t begin,
                                int64_t end, float* total_C) {
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t width = std::min(kBlock, end - first);
    for (int64_t start = 0; start < count; start += kTile) {
      float part[kBlock] = {};
      for (int64_t r = start; r < std::min(start + kTile, count); ++r)
        for (int64_t c = 0; c < width; ++c) part[c] += g_RC[r * classes + first + c];
      for (int64_t c = 0; c < width; ++c) total_C[first + c] += part[c];
    }
  }
}

// Marks the classes [begin, end) that have a gradient of at least `filter` times its token's own scale.
FANGYAN_CLONES void mark_columns(const Chunk& k, int64_t count, int64_t begin, int64_t end,
                                 uint8_t* marked_C) {
  for (int64_t r = 0; r < count; ++r) {
    const float weight = k.token_weight_T ? k.token_weight_T[k.token_R[r]] : 1.0f;
    const float least = k.options.filter * std::fabs(weight * k.scale);
    for (int64_t c = begin; c < end; ++c)
      marked_C[c] |= !(std::fabs(k.logits_RC[r * k.classes + c]) < least);
  }
}

template <class T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

float* floats(Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

// A new tensor whose pages, where it has many, are large ones: most of the time that a fresh matrix takes
// to be written is otherwise spent on its page faults (0.7 ms a megabyte on a virtual machine).
Tensor fresh(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  Tensor tensor = torch::stable::new_empty(like, sizes, dtype);
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 4096;
  const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
  if (bytes >= 4 << 20) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
    const uintptr_t first = (start + kPage - 1) / kPage * kPage, last = (start + bytes) / kPage * kPage;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: it may fail
  }
#endif
  return tensor;
}

Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }

void mm_out(Tensor& out, const Tensor& left, const Tensor& right) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), left.get(), right.get()));
}

// sum += part, which has another dtype.
void add_(Tensor& sum, const Tensor& part) {
  const Tensor wide = torch::stable::to(part, ScalarType::Float);
  const float* from = static_cast<const float*>(wide.const_data_ptr());
  float* into = floats(sum);
  torch::stable::parallel_for(0, sum.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) into[i] += from[i];
  });
}

// out = beta out + left right.
void addmm_out(Tensor& out, const Tensor& left, const Tensor& right, double beta) {
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(out.get(), out.get(), left.get(), right.get(), beta, 1.0));
}

// Rows of a matrix of any element type, to or from their places in another; row_R null is all of them.
void copy_rows(const Tensor& from, const int64_t* from_R, Tensor& to, const int64_t* to_R, int64_t count) {
  const int64_t bytes = from.size(1) * static_cast<int64_t>(from.element_size());
  const char* source = static_cast<const char*>(from.const_data_ptr());
  char* target = static_cast<char*>(to.mutable_data_ptr());
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(bytes, 1)),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t r = begin; r < end; ++r)
                                  std::memcpy(target + (to_R ? to_R[r] : r) * bytes,
                                              source + (from_R ? from_R[r] : r) * bytes, bytes);
                              });
}

std::vector<int64_t> labelled_tokens(const Tensor& target_T, int64_t classes, int64_t ignore_index) {
  std::vector<int64_t> tokens;
  tokens.reserve(target_T.numel());
  const int64_t* target = static_cast<const int64_t*>(target_T.const_data_ptr());
  for (int64_t t = 0; t < target_T.numel(); ++t) {
    if (target[t] == ignore_index) continue;
    STD_TORCH_CHECK(target[t] >= 0 && target[t] < classes, "linear_cross_entropy: target[", t,
                    "] is ", target[t], ", expected a class in [0, ", classes,
                    ") or ignore_index ", ignore_index);
    tokens.push_back(t);
  }
  return tokens;
}

void check(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
           const Tensor& target, const std::optional<Tensor>& class_weight,
           const std::optional<Tensor>& token_weight, const std::optional<Tensor>& divisor) {
  const ScalarType dtype = input.scalar_type();
  STD_TORCH_CHECK(input.dim() == 2 && weight.dim() == 2 && target.dim() == 1 &&
                      input.size(1) == weight.size(1) && input.size(0) == target.size(0),
                  "linear_cross_entropy: expected input (T, H), weight (C, H) and target (T)");
  STD_TORCH_CHECK((dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
                   dtype == ScalarType::Half) &&
                      weight.scalar_type() == dtype && target.scalar_type() == ScalarType::Long,
                  "linear_cross_entropy: expected input and weight of one dtype, float32, bfloat16 "
                  "or float16, and an int64 target");
  STD_TORCH_CHECK(
      !bias || (bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->scalar_type() == dtype),
      "linear_cross_entropy: expected a bias (C) of input's dtype");
  const auto is_float = [](const std::optional<Tensor>& tensor, int64_t dim, int64_t size) {
    return !tensor || (tensor->scalar_type() == ScalarType::Float && tensor->dim() == dim &&
                       tensor->numel() == size);
  };
  STD_TORCH_CHECK(is_float(class_weight, 1, weight.size(0)) &&
                      is_float(token_weight, 1, input.size(0)) && is_float(divisor, 0, 1),
                  "linear_cross_entropy: expected float32 class weights (C), token weights (T) and "
                  "divisor ()");
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(*tensor);
}

std::optional<Tensor> as_float(const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(torch::stable::to(*tensor, ScalarType::Float));
}

double total_weight(const std::vector<int64_t>& tokens, const int64_t* target,
                    const float* class_weight, const float* token_weight) {
  double total = 0.0;
  for (const int64_t t : tokens)
    total += static_cast<double>(class_weight ? class_weight[target[t]] : 1.0f) *
             static_cast<double>(token_weight ? token_weight[t] : 1.0f);
  return total == 0.0 ? 1.0 : total;
}

// The gradients of one call, as its chunks arrive.
class Gradients {
 public:
  Gradients(const Tensor& input_TH, const Tensor& weight_CH, bool input, bool weight, bool bias,
            const std::vector<int64_t>& tokens)
      : weight_CH_(weight_CH), tokens_(tokens), all_(static_cast<int64_t>(tokens.size()) == input_TH.size(0)) {
    const int64_t classes = weight_CH.size(0), hidden = weight_CH.size(1);
    if (input) input_TH_ = fresh(input_TH, {input_TH.size(0), hidden}, input_TH.scalar_type());
    if (weight) weight_CH_sum_ = fresh(weight_CH, {classes, hidden}, ScalarType::Float);
    if (bias) bias_C_sum_ = torch::stable::new_zeros(weight_CH, {classes}, ScalarType::Float);
    if (input && !all_) clear_ignored();
    if (weight && tokens.empty()) torch::stable::zero_(*weight_CH_sum_);
  }

  const Tensor& head() const { return weight_CH_; }
  bool wanted() const { return input_TH_ || weight_CH_sum_ || bias_C_sum_; }

  // g_RC: gradients of the logits of the tokens [start, start + R), whose inputs are chunk_RH.
  void add(const Chunk& k, Tensor& g_RC, const Tensor& chunk_RH, int64_t start) {
    const int64_t count = g_RC.size(0);
    if (bias_C_sum_) {
      float* total = floats(*bias_C_sum_);
      torch::stable::parallel_for(0, k.classes, kBlock, [&](int64_t begin, int64_t end) {
        add_columns(k.logits_RC, count, k.classes, begin, end, total);
      });
    }
    if (!input_TH_ && !weight_CH_sum_) return;
    const std::vector<int64_t> classes = kept_classes(k, count);
    if (classes.empty()) {
      add_products(g_RC, chunk_RH, weight_CH_, weight_CH_sum_, start, start == 0 ? 0.0 : 1.0);
      return;
    }
    if (weight_CH_sum_ && start == 0) torch::stable::zero_(*weight_CH_sum_);
    // What is left of the classes is small enough to be gathered and scattered.
    const int64_t kept = static_cast<int64_t>(classes.size()), hidden = weight_CH_.size(1);
    Tensor g_RK = torch::stable::new_empty(g_RC, {count, kept});
    float* target = floats(g_RK);
    torch::stable::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        for (int64_t i = 0; i < kept; ++i) target[r * kept + i] = k.logits_RC[r * k.classes + classes[i]];
    });
    Tensor weight_KH = torch::stable::new_empty(weight_CH_, {kept, hidden});
    copy_rows(weight_CH_, classes.data(), weight_KH, nullptr, kept);
    std::optional<Tensor> sum_KH;
    if (weight_CH_sum_) sum_KH = torch::stable::new_empty(g_RC, {kept, hidden});
    add_products(g_RK, chunk_RH, weight_KH, sum_KH, start, 0.0);
    if (sum_KH) add_rows(*sum_KH, classes);
  }

  // The same for all tokens at once, a tile at a time. Tasks are as many as threads: the sums' order, and
  // so their last bits, depend on the number of threads and on nothing else.
  void add_tiles(const Chunk& k, const Tensor& input_TH) {
    const int64_t hidden = weight_CH_.size(1), classes = k.classes;
    const Factor weight(static_cast<const float*>(weight_CH_.const_data_ptr()), classes, hidden);
    const TagTiles tiles{k,
                         static_cast<const float*>(input_TH.const_data_ptr()),
                         &weight,
                         hidden,
                         static_cast<int64_t>(tokens_.size()),
                         input_TH_ ? floats(*input_TH_) : nullptr};
    const int64_t number = (tiles.count + kTile - 1) / kTile;
    const int64_t tasks = std::min<int64_t>(number, torch::stable::get_num_threads());
    std::vector<TagSums> sums(tasks);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        TagSums& own = sums[i];
        own.logits.resize(kTile * classes);
        own.unused_row.resize(weight.padded);
        if (weight_CH_sum_) own.weight_CH.resize(weight.sum_size());
        if (bias_C_sum_) own.bias_C.resize(classes);
        tag_tiles(tiles, i * number / tasks, (i + 1) * number / tasks, own);
      }
    });
    for (int64_t c = 0; c < classes; ++c) {
      for (const TagSums& own : sums)
        if (bias_C_sum_) floats(*bias_C_sum_)[c] += own.bias_C[c];
      if (!weight_CH_sum_) continue;
      float* row = floats(*weight_CH_sum_) + c * hidden;
      for (int64_t i = 0; i < tasks; ++i)
        for (int64_t h = 0; h < hidden; ++h) {
          const float part = sums[i].weight_CH[c * weight.padded + h];
          row[h] = i == 0 ? part : row[h] + part;
        }
    }
  }

  Tensor input() const { return input_TH_ ? *input_TH_ : nothing(); }
  Tensor weight() const { return weight_CH_sum_ ? narrowed(*weight_CH_sum_) : nothing(); }
  Tensor bias() const { return bias_C_sum_ ? narrowed(*bias_C_sum_) : nothing(); }

 private:
  void add_products(Tensor& g_RK, const Tensor& chunk_RH, const Tensor& weight_KH,
                    std::optional<Tensor>& sum_KH, int64_t start, double beta) {
    const int64_t count = g_RK.size(0);
    const ScalarType dtype = weight_KH.scalar_type();
    const bool narrow = dtype != ScalarType::Float;
    const Tensor g = narrow ? torch::stable::to(g_RK, dtype) : g_RK;
    if (input_TH_) {
      if (all_) {
        Tensor rows = torch::stable::narrow(*input_TH_, 0, start, count);
        mm_out(rows, g, weight_KH);
      } else {
        Tensor rows = torch::stable::new_empty(weight_KH, {count, weight_KH.size(1)});
        mm_out(rows, g, weight_KH);
        copy_rows(rows, nullptr, *input_TH_, tokens_.data() + start, count);
      }
    }
    if (!sum_KH) return;
    if (dtype != ScalarType::BFloat16) {
      addmm_out(*sum_KH, transposed(g_RK), narrow ? torch::stable::to(chunk_RH, ScalarType::Float) : chunk_RH,
                beta);
      return;
    }
    // The library's product of bfloat16 sums in float32, and is rounded once per chunk; with the processor's
    // own instructions it is several times as fast as one of float32.
    const Tensor part = torch::stable::matmul(transposed(g), chunk_RH);
    if (beta == 0.0)
      torch::stable::copy_(*sum_KH, part);
    else
      add_(*sum_KH, part);
  }

  // The classes that a filter leaves, or none where there is no filter or it leaves most of them.
  std::vector<int64_t> kept_classes(const Chunk& k, int64_t count) const {
    std::vector<int64_t> kept;
    if (k.options.filter == 0.0f) return kept;
    std::vector<uint8_t> marked(k.classes);
    torch::stable::parallel_for(0, k.classes, kBlock, [&](int64_t begin, int64_t end) {
      mark_columns(k, count, begin, end, marked.data());
    });
    for (int64_t c = 0; c < k.classes; ++c)
      if (marked[c]) kept.push_back(c);
    if (2 * static_cast<int64_t>(kept.size()) > k.classes) kept.clear();
    return kept;
  }

  void add_rows(Tensor& from_KH, const std::vector<int64_t>& classes) {
    const int64_t hidden = from_KH.size(1);
    const float* from = floats(from_KH);
    float* to = floats(*weight_CH_sum_);
    torch::stable::parallel_for(0, static_cast<int64_t>(classes.size()), 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t h = 0; h < hidden; ++h) to[classes[i] * hidden + h] += from[i * hidden + h];
    });
  }

  void clear_ignored() {
    const int64_t tokens = input_TH_->size(0);
    const int64_t bytes = input_TH_->size(1) * static_cast<int64_t>(input_TH_->element_size());
    char* rows = static_cast<char*>(input_TH_->mutable_data_ptr());
    int64_t next = 0;
    for (size_t i = 0; i <= tokens_.size(); ++i) {  // the gaps between labelled tokens
      const int64_t token = i < tokens_.size() ? tokens_[i] : tokens;
      if (token > next) std::memset(rows + next * bytes, 0, (token - next) * bytes);
      next = token + 1;
    }
  }

  Tensor narrowed(const Tensor& sum) const { return torch::stable::to(sum, weight_CH_.scalar_type()); }
  Tensor nothing() const { return torch::stable::new_empty(weight_CH_, {0}); }

  Tensor weight_CH_;
  const std::vector<int64_t>& tokens_;
  bool all_;
  std::optional<Tensor> input_TH_, weight_CH_sum_, bias_C_sum_;
};

// A copy in which the input of ignored tokens is 0: where it is not finite, their gradient of 0 would not keep it out
// of the sums.
Tensor without_ignored(const Chunk& k, const Tensor& chunk_RH) {
  const int64_t count = chunk_RH.size(0);
  Tensor clean = torch::stable::new_empty(chunk_RH, {count, chunk_RH.size(1)});
  copy_rows(chunk_RH, nullptr, clean, nullptr, count);
  const int64_t bytes = clean.size(1) * static_cast<int64_t>(clean.element_size());
  for (int64_t r = 0; r < count; ++r)
    if (k.target_T[k.token_R[r]] == k.options.ignore_index)
      std::memset(static_cast<char*>(clean.mutable_data_ptr()) + r * bytes, 0, bytes);
  return clean;
}

// Logits, loss and gradients of `count` tokens, a chunk at a time.
void add_chunks(Chunk& k, const Tensor& input_TH, int64_t count, Gradients& gradients) {
  const Tensor& weight_CH = gradients.head();
  const int64_t hidden = input_TH.size(1);
  const bool all = count == input_TH.size(0), narrow = input_TH.scalar_type() != ScalarType::Float;
  // The fewer tokens, the fewer classes that any of them needs, for a filter to leave.
  const int64_t bytes = k.options.filter > 0.0f ? kChunkBytes / 2 : kChunkBytes;
  const int64_t most = std::max<int64_t>(16, bytes / (4 * std::max<int64_t>(k.classes, 1)));
  const int64_t chunks = (count + most - 1) / most, size = chunks ? (count + chunks - 1) / chunks : 0;
  Tensor logits = fresh(input_TH, {size, k.classes}, ScalarType::Float);
  Tensor gathered = fresh(input_TH, {all ? 0 : size, hidden}, input_TH.scalar_type());
  const int64_t* labelled = k.token_R;
  Tensor source = all ? input_TH : gathered;
  for (int64_t start = 0; start < count; start += size) {
    const int64_t here = std::min(size, count - start);
    k.token_R = labelled + start;
    Tensor chunk_RH = torch::stable::narrow(source, 0, all ? start : 0, here);
    if (!all) copy_rows(input_TH, k.token_R, chunk_RH, nullptr, here);
    Tensor logits_RC = torch::stable::narrow(logits, 0, 0, here);
    if (narrow)
      torch::stable::copy_(logits_RC, torch::stable::matmul(chunk_RH, transposed(weight_CH)));
    else
      mm_out(logits_RC, chunk_RH, transposed(weight_CH));
    k.logits_RC = floats(logits_RC);
    std::atomic<bool> spoiled{false};
    torch::stable::parallel_for(0, here, std::max<int64_t>(1, (1 << 14) / k.classes),
                                [&](int64_t begin, int64_t end) {
                                  if (rows(k, begin, end)) spoiled = true;
                                });
    if (!k.gradients) continue;
    gradients.add(k, logits_RC, spoiled ? without_ignored(k, chunk_RH) : chunk_RH, start);
  }
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Results linear_cross_entropy(Tensor input_TH, Tensor weight_CH, std::optional<Tensor> bias_C,
                             Tensor target_T, std::optional<Tensor> class_weight_C,
                             std::optional<Tensor> token_weight_T, std::optional<Tensor> divisor,
                             std::string reduction, int64_t ignore_index, double label_smoothing,
                             double z_loss, double softcap, double gradient_filter,
                             std::optional<int64_t> /*most_labelled: counted here*/,
                             std::string regime, bool predict, bool grad_input,
                             bool grad_weight, bool grad_bias) {
  check(input_TH, weight_CH, bias_C, target_T, class_weight_C, token_weight_T, divisor);
  const int64_t tokens = input_TH.size(0), classes = weight_CH.size(0);
  input_TH = torch::stable::contiguous(input_TH);
  weight_CH = torch::stable::contiguous(weight_CH);
  target_T = torch::stable::contiguous(target_T);
  bias_C = as_float(bias_C);
  class_weight_C = contiguous(class_weight_C);
  token_weight_T = contiguous(token_weight_T);
  std::vector<int64_t> taken = labelled_tokens(target_T, classes, ignore_index);
  const int64_t labelled = static_cast<int64_t>(taken.size());
  const bool narrow = input_TH.scalar_type() != ScalarType::Float;
  const float* class_weight = data<float>(class_weight_C);
  const int64_t* target = static_cast<const int64_t*>(target_T.const_data_ptr());

  double total = 1.0;
  if (reduction == "mean")
    total = divisor ? *data<float>(divisor)
                    : total_weight(taken, target, class_weight, data<float>(token_weight_T));
  double class_weight_sum = classes;
  if (class_weight) {
    class_weight_sum = 0.0;
    for (int64_t c = 0; c < classes; ++c) class_weight_sum += static_cast<double>(class_weight[c]);
  }

  Tensor loss_T = torch::stable::new_zeros(input_TH, {tokens}, ScalarType::Float);
  Tensor prediction_T = torch::stable::new_empty(target_T, {predict ? tokens : 0});
  if (predict) torch::stable::fill_(prediction_T, static_cast<double>(ignore_index));
  std::vector<uint8_t> correct(tokens);
  const bool by_tiles = labelled > 0 && !narrow && (regime == "tags" || (regime == "auto" && classes <= most_tags()));
  if (!by_tiles && takes_ignored(labelled, tokens, classes, static_cast<float>(gradient_filter))) {
    taken.resize(tokens);
    std::iota(taken.begin(), taken.end(), 0);
  }
  Gradients gradients(input_TH, weight_CH, grad_input, grad_weight, grad_bias, taken);

  Chunk chunk{nullptr,
              data<float>(bias_C),
              class_weight,
              taken.data(),
              target,
              data<float>(token_weight_T),
              classes,
              static_cast<float>(class_weight_sum),
              static_cast<float>(1.0 / total),
              gradients.wanted(),
              predict,
              {ignore_index, static_cast<float>(label_smoothing), static_cast<float>(z_loss),
               static_cast<float>(softcap), static_cast<float>(gradient_filter)},
              floats(loss_T),
              static_cast<int64_t*>(prediction_T.mutable_data_ptr()),
              correct.data()};
  if (by_tiles)
    gradients.add_tiles(chunk, input_TH);
  else
    add_chunks(chunk, input_TH, static_cast<int64_t>(taken.size()), gradients);

  Tensor loss = loss_T;
  if (reduction != "none") {
    double sum = 0.0;
    for (int64_t t = 0; t < tokens; ++t) sum += static_cast<double>(floats(loss_T)[t]);
    loss = torch::stable::new_empty(loss_T, {});
    *floats(loss) = static_cast<float>(sum / total);
  }
  const auto number = [&](int64_t value) {
    Tensor tensor = torch::stable::new_empty(target_T, {});
    *static_cast<int64_t*>(tensor.mutable_data_ptr()) = value;
    return tensor;
  };
  const int64_t right = std::count(correct.begin(), correct.end(), 1);
  return {loss,           number(labelled),   number(right),    prediction_T,
          gradients.input(), gradients.weight(), gradients.bias()};
}

void scale_gradients_(Tensor first, Tensor second, Tensor third, Tensor scale) {
  const Tensor factor = torch::stable::to(scale, ScalarType::Float);
  if (*static_cast<const float*>(factor.const_data_ptr()) == 1.0f) return;
  for (Tensor* gradient : {&first, &second, &third}) {
    std::array<StableIValue, 2> stack{torch::stable::detail::from(*gradient),
                                      torch::stable::detail::from(scale)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul_", "Tensor", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);  // owns the returned handle
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fangyan, CPU, m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&linear_cross_entropy));
  m.impl("scale_gradients_", TORCH_BOX(&scale_gradients_));
}
