// Matrix products in which one matrix is small (a tagger's head, a low-rank adapter, one sequence's keys): a BLAS is
// slow where one side is a handful. As in BLIS, a micro-kernel keeps a tile of 6 x 16 sums in registers, the most that
// AVX2 holds, and the small matrix is packed in the order in which it is read.
//
// C rows of the small matrix, H columns; R rows of the other operand.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu_dispatch.h"

namespace fangyan::matmul {

constexpr int64_t kRows = 6;      // rows of the micro-kernel's tile
constexpr int64_t kColumns = 16;  // columns of the micro-kernel's tile
constexpr int64_t kMaxRows = 96;  // R of add_outer_product
static_assert(kMaxRows % kRows == 0);

constexpr int64_t round_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// A small matrix, padded with zeros to a multiple of kColumns and packed twice: for products over H and over C.
struct PackedMatrix {
  std::vector<float> panels;       // (C / kColumns, H, kColumns): panels of kColumns rows, transposed
  std::vector<float> padded_rows;  // (C, padded_columns)
  int64_t rows, columns, padded_columns;

  PackedMatrix(const float* matrix_CH, int64_t rows_, int64_t columns_)
      : panels(round_up(rows_, kColumns) * columns_),
        rows(rows_),
        columns(columns_),
        padded_columns(round_up(columns_, kColumns)) {
    for (int64_t c = 0; c < rows; ++c)
      for (int64_t h = 0; h < columns; ++h)
        panels[((c / kColumns) * columns + h) * kColumns + c % kColumns] = matrix_CH[c * columns + h];
    padded_rows.resize(rows * padded_columns);
    for (int64_t c = 0; c < rows; ++c)
      std::memcpy(&padded_rows[c * padded_columns], matrix_CH + c * columns, columns * sizeof(float));
  }

  // Floats of a sum that add_outer_product adds to: (C, padded_columns), and rows that complete the last tile.
  int64_t sum_size() const { return (rows + kRows) * padded_columns; }
};

}  // namespace fangyan::matmul

#define FANGYAN_INL "matmul-inl.h"
#include "cpu_dispatch.h"
