// The products of matmul.h, compiled once per instruction set.

namespace fangyan::matmul::FANGYAN_SIMD {

// The instruction set has to be known where a vector's type is declared: vectors in a function with target_clones
// would be computed one float at a time.
typedef float Vector __attribute__((vector_size(32)));
static_assert(2 * sizeof(Vector) == kColumns * sizeof(float));

// Products summed before they are added to the total. The rounding error grows with this number and with the number of
// such sums, not with their product.
constexpr int64_t kSumBlock = 128;

// One vector per call: a copy of two at once would go through memory in halves.
FANGYAN_INLINE void add(Vector& sum, const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  sum += v;
}

FANGYAN_INLINE void store(float* to, const Vector& sum) { std::memcpy(to, &sum, sizeof sum); }

// out[i][.] (+)= sum_k left[i][k * left_stride] right[k * right_stride + .] for kRows rows and kColumns columns.
FANGYAN_INLINE void micro_kernel(const float* const* left, int64_t left_stride, const float* right,
                                 int64_t right_stride, int64_t depth, bool accumulate, float* const* out) {
  const float* row[kRows];
#pragma GCC unroll 6
  for (int64_t i = 0; i < kRows; ++i) row[i] = left[i];
  for (int64_t start = 0; start < depth || start == 0; start += kSumBlock) {
    const int64_t end = depth < start + kSumBlock ? depth : start + kSumBlock;
    Vector sums[kRows][2];
#pragma GCC unroll 6
    for (int64_t i = 0; i < kRows; ++i) sums[i][0] = sums[i][1] = Vector{};
    for (int64_t k = start; k < end; ++k) {
      Vector first, second;
      std::memcpy(&first, right + k * right_stride, sizeof first);
      std::memcpy(&second, right + k * right_stride + kColumns / 2, sizeof second);
#pragma GCC unroll 6
      for (int64_t i = 0; i < kRows; ++i) {
        const float x = row[i][k * left_stride];
        sums[i][0] += first * x;
        sums[i][1] += second * x;
      }
    }
#pragma GCC unroll 6
    for (int64_t i = 0; i < kRows; ++i) {
      float* to = out[i];
      if (accumulate || start > 0) {
        add(sums[i][0], to);
        add(sums[i][1], to + kColumns / 2);
      }
      store(to, sums[i][0]);
      store(to + kColumns / 2, sums[i][1]);
    }
  }
}

// z_rc = sum_h input_rh matrix_ch. Writes rows up to the next multiple of kRows; z has C columns.
FANGYAN_INLINE void multiply_transposed(const PackedMatrix& matrix, const float* const* input, int64_t rows, float* z) {
  const int64_t classes = matrix.rows;
  float edge[kRows][kColumns];
  float* out[kRows];
  for (int64_t r = 0; r < rows; r += kRows)
    for (int64_t c = 0; c < classes; c += kColumns) {
      const bool is_full = c + kColumns <= classes;
      for (int64_t i = 0; i < kRows; ++i) out[i] = is_full ? z + (r + i) * classes + c : edge[i];
      micro_kernel(input + r, 1, matrix.panels.data() + c * matrix.columns, kColumns, matrix.columns, false, out);
      if (!is_full)
        for (int64_t i = 0; i < kRows; ++i)
          std::memcpy(z + (r + i) * classes + c, edge[i], (classes - c) * sizeof(float));
    }
}

// out_rh (+)= sum_c z_rc matrix_ch. Writes rows up to the next multiple of kRows.
FANGYAN_INLINE void multiply(const PackedMatrix& matrix, const float* z, int64_t rows, bool accumulate,
                             float* const* output) {
  float edge[kRows][kColumns];
  const float* left[kRows];
  float* out[kRows];
  for (int64_t r = 0; r < rows; r += kRows) {
    for (int64_t i = 0; i < kRows; ++i) left[i] = z + (r + i) * matrix.rows;
    for (int64_t h = 0; h < matrix.columns; h += kColumns) {
      const int64_t width = std::min(kColumns, matrix.columns - h);
      const bool is_full = width == kColumns;
      for (int64_t i = 0; i < kRows; ++i) out[i] = is_full ? output[r + i] + h : edge[i];
      micro_kernel(left, 1, matrix.padded_rows.data() + h, matrix.padded_columns, matrix.rows, is_full && accumulate,
                   out);
      if (is_full) continue;
      for (int64_t i = 0; i < kRows; ++i)
        for (int64_t j = 0; j < width; ++j)
          output[r + i][h + j] = edge[i][j] + (accumulate ? output[r + i][h + j] : 0.0f);
    }
  }
}

// total_ch += sum_r z_rc input_rh for at most kMaxRows rows; total has PackedMatrix::sum_size() floats. A strip of
// kColumns inputs stays in the first-level cache for all c.
FANGYAN_INLINE void add_outer_product(const PackedMatrix& matrix, const float* z, const float* const* input,
                                      int64_t rows, float* total) {
  const int64_t classes = matrix.rows, columns = matrix.columns;
  float strip[kMaxRows][kColumns] = {};
  const float* left[kRows];
  float* out[kRows];
  for (int64_t h = 0; h < columns; h += kColumns) {
    if (h + kColumns <= columns)
      for (int64_t r = 0; r < rows; ++r) std::memcpy(strip[r], input[r] + h, sizeof strip[r]);
    else
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < kColumns; ++j) strip[r][j] = h + j < columns ? input[r][h + j] : 0.0f;
    for (int64_t c = 0; c < classes; c += kRows) {
      // The last tile is padded: its excess rows go to the rows of `total` after the last.
      for (int64_t i = 0; i < kRows; ++i) {
        left[i] = z + (c + i < classes ? c + i : c);
        out[i] = total + (c + i) * matrix.padded_columns + h;
      }
      micro_kernel(left, classes, strip[0], kColumns, rows, true, out);
    }
  }
}

}  // namespace fangyan::matmul::FANGYAN_SIMD
