// Choosing pages by bounds of their scores: see bounds.inl for what stands for a page.
#include <algorithm>
#include <cmath>

#include "picking.hpp"
#include "pool.hpp"

namespace diastole {
namespace {

// One query row as it meets what stands for a page: beside the largest of a channel's keys where it is positive, beside
// the smallest where it is negative.
void spread(const float* q, int dim, int per, float* out) {
  alignas(64) float both[2 * kMaxDim];
  for (int i = 0; i < dim; i++) both[i] = std::max(q[i], 0.f), both[dim + i] = std::min(q[i], 0.f);
  const int lanes = 16 / per;
  for (const float *at = both, *end = both + 2 * dim; at < end; at += 2 * lanes, out += 32)
    for (int j = 0; j < lanes; j++)
      for (int p = 0; p < per; p++) out[p * lanes + j] = at[2 * j], out[16 + p * lanes + j] = at[2 * j + 1];
}

}  // namespace

void pick_pages(const Kernels& isa, const Look& look, const uint16_t* index, int per, const Bounded& rows, int32_t* places,
                int32_t* pages, ptrdiff_t stride) {
  constexpr int kPiece = 64;  // pages of one task
  const int steps = look.dim * per / 16, pieces = ceil_div(rows.width, kPiece), heads = look.kv_heads;
  const size_t query = static_cast<size_t>(steps) * 32;
  static thread_local std::vector<float> spreads, found;
  spreads.resize(static_cast<size_t>(rows.r) * heads * look.group * query);
  found.resize(static_cast<size_t>(rows.r) * heads * rows.width);
  for (int i = 0; i < rows.r; i++)
    for (int h = 0; h < heads * look.group; h++)
      if (rows.heads[h / look.group])
        spread(look.q + i * look.q_stride + static_cast<ptrdiff_t>(h) * look.dim, look.dim, per,
               spreads.data() + (static_cast<size_t>(i) * heads * look.group + static_cast<size_t>(h)) * query);
  const float* queries = spreads.data();  // the caller's, in every thread
  float* scores = found.data();
  const double work = static_cast<double>(rows.r) * rows.width * heads * look.group * steps * 32;
  Pool& pool = Pool::get();
  pool.each(rows.r * heads * pieces, [&](int task) {
    const int piece = task % pieces, g = task / pieces % heads, i = task / pieces / heads;
    const int32_t* table = rows.tables + static_cast<ptrdiff_t>(i) * rows.width;
    const int last = rows.blocks[i], from = piece * kPiece, to = std::min(last - rows.recent + 1, from + kPiece);
    const float* q = queries + (static_cast<size_t>(i) * heads + static_cast<size_t>(g)) * look.group * query;
    float* s = scores + (static_cast<size_t>(i) * heads + static_cast<size_t>(g)) * rows.width;
    if (!rows.heads[g]) return;
    const auto bounds = [&](int p) { return index + (static_cast<size_t>(table[p]) * rows.kept + static_cast<size_t>(rows.heads[g] - 1)) * query; };
    for (int p = from; p < to; p++) {
      if (p + 1 < to)
        for (size_t c = 0; c < query; c += 32) __builtin_prefetch(bounds(p + 1) + c);
      s[p] = p < rows.first ? INFINITY : isa.reach(q, look.group, steps, per, bounds(p));
    }
  }, work >= kAlone);
  pool.each(rows.r * heads, [&](int task) {
    if (!rows.heads[task % heads]) return;
    const int last = rows.blocks[task / heads];
    float* s = scores + static_cast<size_t>(task) * rows.width;
    std::fill(s + last - rows.recent + 1, s + last + 1, INFINITY);
    int32_t* to = places + static_cast<ptrdiff_t>(task) * rows.k;
    const int count = top_places(isa, s, last + 1, rows.k, to);
    std::fill(to + count, to + rows.k, last);  // only where scores are no numbers
    const int32_t* table = rows.tables + static_cast<ptrdiff_t>(task / heads) * rows.width;
    int32_t* ids = pages + (static_cast<ptrdiff_t>(rows.runs[task / heads]) * heads + task % heads) * stride;
    for (int i = 0; i < rows.k; i++) ids[i] = table[to[i]];
  }, work >= kAlone);
}

}  // namespace diastole
