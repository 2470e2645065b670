#include "shadow.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "picking.hpp"
#include "pool.hpp"

namespace diastole {
namespace {

struct Miss {
  int row, head, chunk, slot;
};

// Scores of all query heads of a group against a stream's landmarks, as logarithms of their softmax weights; the largest
// of the group for each chunk: best (chunks of the stream,).
void weigh(const Kernels& isa, const Shadows& state, const Shadowed& rows, int i, int g, const float* q, float scale, float* best) {
  static thread_local std::vector<float> query, found, line;
  const int dim = state.dim, half = dim / 2, n = rows.pages[i] * kChunksOfPage;
  query.resize(static_cast<size_t>(state.group) * dim);
  found.resize(static_cast<size_t>(state.group) * kChunksOfPage);
  line.resize(static_cast<size_t>(state.group) * n);
  for (int h = 0; h < state.group; h++)
    for (int c = 0; c < half; c++) {
      query[static_cast<size_t>(h * dim + c)] = q[h * dim + 2 * c] * scale;
      query[static_cast<size_t>(h * dim + half + c)] = q[h * dim + 2 * c + 1] * scale;
    }
  const int32_t* table = rows.tables + static_cast<ptrdiff_t>(i) * rows.width;
  for (int p = 0; p < rows.pages[i]; p++) {
    const uint16_t* marks = state.marks + (static_cast<size_t>(table[p]) * state.kv_heads + g) * kChunksOfPage * dim;
    isa.dots(query.data(), state.group, dim, marks, kChunksOfPage, found.data());
    for (int h = 0; h < state.group; h++)
      std::copy_n(found.data() + h * kChunksOfPage, kChunksOfPage, line.data() + static_cast<ptrdiff_t>(h) * n + p * kChunksOfPage);
  }
  const int32_t* outliers = state.outliers + (static_cast<size_t>(rows.records[i]) * state.kv_heads + g) * state.outlying;
  std::fill_n(best, n, -INFINITY);
  for (int h = 0; h < state.group; h++) {
    float* own = line.data() + static_cast<ptrdiff_t>(h) * n;
    for (int o = 0; o < state.outlying; o++)
      if (outliers[o] >= 0 && outliers[o] < n) own[outliers[o]] = -INFINITY;
    const float top = isa.most(own, n), total = top + std::log(isa.exp_sum(own, n, top));
    for (int c = 0; c < n; c++) best[c] = std::max(best[c], own[c] - total);
  }
}

// Finds a slot for every chosen chunk: where it is already, or one that holds nothing that is chosen. slots (count,).
int place(int32_t* held, int size, const int32_t* chosen, int count, int32_t* slots, int32_t* missing) {
  static thread_local std::vector<int32_t> spare;
  spare.clear();
  std::fill_n(slots, count, -1);
  for (int j = 0; j < size; j++) {
    const int32_t* found = std::lower_bound(chosen, chosen + count, held[j]);
    if (found != chosen + count && *found == held[j])
      slots[found - chosen] = j;
    else
      spare.push_back(j);
  }
  int misses = 0;
  for (int c = 0; c < count; c++) {
    if (slots[c] >= 0) continue;
    slots[c] = spare[static_cast<size_t>(misses)];
    held[slots[c]] = chosen[c];
    missing[misses++] = c;
  }
  return misses;
}

uint8_t* buffer_page(const Shadows& state, int buffer, int slot, int g) {
  const int per = ceil_div(state.chunks, kChunksOfPage);
  const size_t page = static_cast<size_t>(state.first + buffer * per + slot / kChunksOfPage);
  return state.pages + (page * static_cast<size_t>(state.kv_heads) + static_cast<size_t>(g)) * state.page_bytes;
}

void fetch(const Kernels& isa, const Shadows& state, const Shadowed& rows, const Miss& miss) {
  const size_t dim = static_cast<size_t>(state.dim), line = kChunk * dim * 2;
  const size_t page = static_cast<size_t>(rows.tables[static_cast<ptrdiff_t>(miss.row) * rows.width + miss.chunk / kChunksOfPage]);
  const size_t inside = static_cast<size_t>(miss.chunk % kChunksOfPage), slot = static_cast<size_t>(miss.slot % kChunksOfPage);
  const ptrdiff_t width = static_cast<ptrdiff_t>(state.kv_heads) * state.dim;
  alignas(64) uint16_t keys[kChunk * kMaxDim];
  isa.rebuild(state.a + (page * kPage + inside * kChunk) * static_cast<size_t>(state.rank), state.rank,
              state.basis + static_cast<ptrdiff_t>(rows.records[miss.row]) * state.rank * width + miss.head * state.dim, width, state.dim,
              state.rope + static_cast<ptrdiff_t>(miss.chunk) * kChunk * state.rotated, state.rotated, keys);
  uint8_t* to = buffer_page(state, rows.buffers[miss.row], miss.slot, miss.head) + 2 * slot * line;  // see rows.inl
  const uint8_t* from = state.values + (page * static_cast<size_t>(state.kv_heads) + static_cast<size_t>(miss.head)) * kPage * dim * 2;
  for (size_t t = 0, size = dim * 2; t < kChunk; t++, to += 2 * size) {
    std::memcpy(to, keys + t * dim, size);
    std::memcpy(to + size, from + inside * line + t * size, size);
  }
}

}  // namespace

void recall(const Kernels& isa, const Shadows& state, const Shadowed& rows, const float* q, ptrdiff_t q_stride, float scale,
            int64_t* at, int room, int32_t* missed) {
  const int tasks = rows.r * state.kv_heads, size = state.chunks;
  static thread_local std::vector<int32_t> kept;
  static thread_local std::vector<Miss> misses;
  kept.resize(static_cast<size_t>(tasks) * size * 3);  // of every task: chosen chunks, their slots, which are missing
  int32_t* all = kept.data();
  double work = 0;
  for (int i = 0; i < rows.r; i++) work += static_cast<double>(rows.pages[i]) * kChunksOfPage * state.kv_heads * state.group * state.dim;
  Pool::get().each(tasks, [&](int task) {
    static thread_local std::vector<float> best;
    const int i = task / state.kv_heads, g = task % state.kv_heads, n = rows.pages[i] * kChunksOfPage;
    int32_t* chosen = all + static_cast<ptrdiff_t>(task) * size * 3;
    best.resize(static_cast<size_t>(n));
    weigh(isa, state, rows, i, g, q + rows.which[i] * q_stride + static_cast<ptrdiff_t>(g) * state.group * state.dim, scale, best.data());
    const int count = top_places(isa, best.data(), n, size, chosen);
    int32_t* held = state.held + (static_cast<ptrdiff_t>(rows.buffers[i]) * state.kv_heads + g) * size;
    missed[task] = place(held, size, chosen, count, chosen + size, chosen + 2 * size);
    int64_t* to = at + static_cast<ptrdiff_t>(task) * room;
    const int64_t own = to[size * kChunk];
    const int64_t first = static_cast<int64_t>(state.first + rows.buffers[i] * ceil_div(size, kChunksOfPage)) * kPage;
    for (int c = 0; c < count; c++)
      for (int t = 0; t < kChunk; t++) *to++ = first + chosen[size + c] * kChunk + t;
    std::fill_n(to, (size - count) * kChunk, own);  // scores that are no numbers choose nothing: nobody else's rows either
  }, work >= kAlone);
  misses.clear();
  for (int task = 0; task < tasks; task++) {
    const int32_t* chosen = all + static_cast<ptrdiff_t>(task) * size * 3;
    for (int m = 0; m < missed[task]; m++) {
      const int c = chosen[2 * size + m];
      misses.push_back({task / state.kv_heads, task % state.kv_heads, chosen[c], chosen[size + c]});
    }
  }
  constexpr int kPiece = 8;  // chunks of a task
  const std::vector<Miss>& each = misses;  // the caller's, in every thread
  const int count = static_cast<int>(each.size());
  Pool::get().each(ceil_div(count, kPiece), [&](int piece) {
    for (int m = piece * kPiece; m < std::min(count, (piece + 1) * kPiece); m++) fetch(isa, state, rows, each[static_cast<size_t>(m)]);
  }, static_cast<double>(count) * kChunk * state.rank * state.dim >= kAlone);
}

}  // namespace diastole
