// Operations on whole tensors that linear_cross_entropy.cpp needs: products of the libtorch that it runs in, and
// copies.

#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "tensors.h"

namespace fangyan::linear_cross_entropy {

inline int64_t bytes_per_row(const Tensor& matrix) {
  return matrix.size(1) * static_cast<int64_t>(matrix.element_size());
}

// Returns an uninitialized tensor, on huge pages where it is large: most of the time to write a fresh matrix otherwise
// goes into its page faults (0.7 ms per megabyte on a virtual machine).
inline Tensor empty_on_huge_pages(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
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

inline Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }

// out = left right
inline void mm_out(Tensor& out, const Tensor& left, const Tensor& right) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), left.get(), right.get()));
}

// out = beta out + left right
inline void addmm_out(Tensor& out, const Tensor& left, const Tensor& right, double beta) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), left.get(), right.get(), beta, 1.0));
}

// sum += addend, whose dtype is another.
inline void add_(Tensor& sum, const Tensor& addend) {
  const Tensor wide = torch::stable::to(addend, ScalarType::Float);
  const float* from = const_data<float>(wide);
  float* to = mutable_data<float>(sum);
  torch::stable::parallel_for(0, sum.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] += from[i];
  });
}

// Copies `count` rows of any dtype: row from_R[r] of one matrix to row to_R[r] of another. Null stands for row r.
inline void copy_rows(const Tensor& from, const int64_t* from_R, Tensor& to, const int64_t* to_R, int64_t count) {
  const int64_t bytes = bytes_per_row(from);
  const char* source = const_data<char>(from);
  char* target = mutable_data<char>(to);
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(bytes, 1));
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      std::memcpy(target + (to_R ? to_R[r] : r) * bytes, source + (from_R ? from_R[r] : r) * bytes, bytes);
  });
}

}  // namespace fangyan::linear_cross_entropy
