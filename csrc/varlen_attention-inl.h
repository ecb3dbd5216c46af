// The kernel of varlen_attention.h, compiled once per instruction set.

namespace fangyan::varlen_attention::FANGYAN_SIMD {

using namespace softmax;
using matmul::kColumns;
using matmul::kRows;
using matmul::FANGYAN_SIMD::micro_kernel;

// Rows of one head into float32, times `scale`.
template <class T>
FANGYAN_INLINE void load_rows(const HeadsView<const T>& from, int64_t first, int64_t rows, int64_t head,
                              int64_t head_size, float scale, float* __restrict to, int64_t padded_size) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* __restrict source = from.at(first + r, head);
    for (int64_t d = 0; d < head_size; ++d) to[r * padded_size + d] = to_float(source[d]) * scale;
  }
}

template <class T>
FANGYAN_INLINE void store_rows(const float* __restrict from, int64_t padded_size, float scale, const HeadsView<T>& to,
                               int64_t first, int64_t rows, int64_t head, int64_t head_size) {
  for (int64_t r = 0; r < rows; ++r) {
    T* __restrict target = to.at(first + r, head);
    for (int64_t d = 0; d < head_size; ++d) assign(target[d], from[r * padded_size + d] * scale);
  }
}

// (L, D) to (L / kColumns, D, kColumns): panels of kColumns tokens, transposed.
FANGYAN_INLINE void pack_panels(const float* __restrict from, int64_t rows, int64_t head_size, int64_t padded_size,
                                float* __restrict to) {
  for (int64_t start = 0; start < rows; start += kColumns)
    for (int64_t d = 0; d < head_size; ++d)
      for (int64_t j = 0; j < kColumns; ++j)
        to[start * head_size + d * kColumns + j] = from[(start + j) * padded_size + d];
}

// A tile of queries (or of their gradients) and the keys [begin, end) that any of them sees.
struct Tile {
  int64_t rows, begin, end;
  int64_t head_size, padded_size, score_stride;

  // scores_rj = sum_d rows_rd panels_dj for the tile's keys and those that complete their panels.
  FANGYAN_INLINE_MEMBER void scores(const float* rows_RD, const float* panels, float* scores_RL) const {
    const float* left[kRows];
    float* out[kRows];
    for (int64_t j = begin / kColumns * kColumns; j < end; j += kColumns)
      for (int64_t r = 0; r < rows; r += kRows) {
        for (int64_t i = 0; i < kRows; ++i) {
          left[i] = rows_RD + (r + i) * padded_size;
          out[i] = scores_RL + (r + i) * score_stride + j;
        }
        micro_kernel(left, 1, panels + j * head_size, kColumns, head_size, false, out);
      }
  }

  // out_rd = sum_j scores_rj rows_jd over the tile's keys.
  FANGYAN_INLINE_MEMBER void weighted_sum(const float* scores_RL, const float* rows_LD, float* out_RD) const {
    const float* left[kRows];
    float* out[kRows];
    for (int64_t r = 0; r < rows; r += kRows)
      for (int64_t d = 0; d < padded_size; d += kColumns) {
        for (int64_t i = 0; i < kRows; ++i) {
          left[i] = scores_RL + (r + i) * score_stride + begin;
          out[i] = out_RD + (r + i) * padded_size + d;
        }
        micro_kernel(left, 1, rows_LD + begin * padded_size + d, padded_size, end - begin, false, out);
      }
  }

  // total_jd += sum_r scores_rj rows_rd for the tile's keys. Up to kRows - 1 rows after them are written too.
  FANGYAN_INLINE_MEMBER void add_transposed(const float* scores_RL, const float* rows_RD, float* total_LD) const {
    const float* left[kRows];
    float* out[kRows];
    for (int64_t j = begin; j < end; j += kRows)
      for (int64_t d = 0; d < padded_size; d += kColumns) {
        for (int64_t i = 0; i < kRows; ++i) {
          left[i] = scores_RL + j + i;
          out[i] = total_LD + (j + i) * padded_size + d;
        }
        micro_kernel(left, score_stride, rows_RD + d, padded_size, rows, true, out);
      }
  }
};

// Replaces a query's scores by probabilities over the keys [begin, end) that it sees, and by 0 for the tile's others
// and the kRows after them.
FANGYAN_INLINE void probabilities(const Tile& tile, float* scores, int64_t begin, int64_t end) {
  float* z = scores + begin;
  const float max = row_max(z, end - begin);
  const float sum = row_sum(end - begin, [&](int64_t j) { return z[j] = exp_nonpositive(z[j] - max); });
  const float inverse = 1.0f / sum;
  for (int64_t j = 0; j < end - begin; ++j) z[j] *= inverse;
  for (int64_t j = tile.begin; j < begin; ++j) scores[j] = 0.0f;
  for (int64_t j = end; j < tile.end + kRows; ++j) scores[j] = 0.0f;
}

// Replaces the gradients of a tile's probabilities by those of its scores: p_ij (dp_ij - sum_j p_ij dp_ij).
FANGYAN_INLINE void score_gradients(const Tile& tile, const float* scores, float* grad_scores) {
  const int64_t keys = tile.end - tile.begin;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float* p = scores + r * tile.score_stride + tile.begin;
    float* g = grad_scores + r * tile.score_stride + tile.begin;
    const float mean = row_sum(keys, [&](int64_t j) { return p[j] * g[j]; });
    for (int64_t j = 0; j < keys; ++j) g[j] = p[j] * (g[j] - mean);
    for (int64_t j = keys; j < keys + kRows; ++j) g[j] = 0.0f;
  }
}

// Attention of one sequence's query heads that share a head of keys and values.
template <class T>
static void attend(const Arguments<T>& k, int64_t sequence, int64_t key_head, Workspace& own) {
  const int64_t start = k.offsets[sequence], length = k.offsets[sequence + 1] - start;
  const int64_t size = k.head_size, padded = own.padded_size, group = k.heads / k.key_heads;
  const bool backward = k.grad.data != nullptr;
  load_rows(k.key, start, length, key_head, size, 1.0f, own.key.data(), padded);
  load_rows(k.value, start, length, key_head, size, 1.0f, own.value.data(), padded);
  pack_panels(own.key.data(), length, size, padded, own.key_panels.data());
  if (backward) {
    pack_panels(own.value.data(), length, size, padded, own.value_panels.data());
    std::memset(own.grad_key.data(), 0, (length + kRows) * padded * sizeof(float));
    std::memset(own.grad_value.data(), 0, (length + kRows) * padded * sizeof(float));
  }
  for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head)
    for (int64_t i = 0; i < length; i += kTileQueries) {
      const int64_t rows = std::min(kTileQueries, length - i);
      const Tile tile{.rows = rows,
                      .begin = std::max<int64_t>(0, i - k.left),
                      .end = std::min(length, i + rows + k.right),
                      .head_size = size,
                      .padded_size = padded,
                      .score_stride = own.score_stride};
      load_rows(k.query, start + i, rows, head, size, k.scale, own.query.data(), padded);
      tile.scores(own.query.data(), own.key_panels.data(), own.scores.data());
      for (int64_t r = 0; r < rows; ++r)
        probabilities(tile, own.scores.data() + r * own.score_stride, std::max<int64_t>(0, i + r - k.left),
                      std::min(length, i + r + 1 + k.right));
      if (!backward) {
        tile.weighted_sum(own.scores.data(), own.value.data(), own.output.data());
        store_rows(own.output.data(), padded, 1.0f, k.output, start + i, rows, head, size);
        continue;
      }
      load_rows(k.grad, start + i, rows, head, size, 1.0f, own.grad.data(), padded);
      tile.add_transposed(own.scores.data(), own.grad.data(), own.grad_value.data());
      tile.scores(own.grad.data(), own.value_panels.data(), own.grad_scores.data());
      score_gradients(tile, own.scores.data(), own.grad_scores.data());
      tile.add_transposed(own.grad_scores.data(), own.query.data(), own.grad_key.data());
      tile.weighted_sum(own.grad_scores.data(), own.key.data(), own.output.data());
      store_rows(own.output.data(), padded, k.scale, k.grad_query, start + i, rows, head, size);
    }
  if (!backward) return;
  store_rows(own.grad_key.data(), padded, 1.0f, k.grad_key, start, length, key_head, size);
  store_rows(own.grad_value.data(), padded, 1.0f, k.grad_value, start, length, key_head, size);
}

}  // namespace fangyan::varlen_attention::FANGYAN_SIMD
