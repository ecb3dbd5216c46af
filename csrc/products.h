// Products of a few rows with a matrix of few rows: a library's are slow where one side is a handful. They
// keep 6 x 16 sums in registers, the most that AVX2 holds. The kernels are in products.inc.
//
// C rows of the small matrix, H columns; R rows of a tile.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace fangyan {

constexpr int64_t kMostRows = 96;  // of a tile
constexpr int64_t kGroup = 6;   // rows of sums in registers
constexpr int64_t kWidth = 16;  // columns of sums in registers
static_assert(kMostRows % kGroup == 0);

// A small matrix as the kernels read it, with columns of zeros up to a multiple of kWidth.
struct Factor {
  std::vector<float> by_column;  // (C / kWidth, H, kWidth): for products over H
  std::vector<float> by_row;     // (C, H padded): for products over C
  int64_t rows, columns, padded;

  Factor(const float* matrix_CH, int64_t rows_, int64_t columns_)
      : by_column((rows_ + kWidth - 1) / kWidth * kWidth * columns_),
        rows(rows_),
        columns(columns_),
        padded((columns_ + kWidth - 1) / kWidth * kWidth) {
    for (int64_t c = 0; c < rows; ++c)
      for (int64_t h = 0; h < columns; ++h)
        by_column[((c / kWidth) * columns + h) * kWidth + c % kWidth] = matrix_CH[c * columns + h];
    by_row.resize(rows * padded);
    for (int64_t c = 0; c < rows; ++c)
      std::memcpy(&by_row[c * padded], matrix_CH + c * columns, columns * sizeof(float));
  }

  // Floats of a sum of the matrix' own gradient: add_outer writes rows that fill the last group.
  int64_t sum_size() const { return (rows + kGroup) * padded; }
};

}  // namespace fangyan
