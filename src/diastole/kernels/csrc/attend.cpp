// Attention over paged keys and values, spread over threads: see attention.inl for what one thread does.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "memory.hpp"
#include "ops.hpp"
#include "pool.hpp"

namespace diastole {
namespace {

constexpr size_t kMostPartials = (size_t{32} << 20) / sizeof(Partial);

struct Tile {  // some rows of one stream that walk its pages together
  const int32_t* table;
  int t0, t1;
  int s0, s1;  // splits that any of them sees
};

std::vector<Tile> tiles_of(const Look& look, const std::vector<Span>& streams, const int32_t* tables, ptrdiff_t stride) {
  std::vector<Tile> tiles;
  const int most = std::max(1, kTile / look.group);
  for (size_t b = 0; b < streams.size(); b++) {
    for (int t = streams[b].t0; t < streams[b].t1; t += most) {
      Tile tile{tables + static_cast<ptrdiff_t>(b) * stride, t, std::min(t + most, streams[b].t1), 1 << 30, 0};
      for (int r = tile.t0; r < tile.t1; r++)
        for (int g = 0; g < (look.head_step ? look.kv_heads : 1); g++) {
          if (look.from(r, g) >= look.to(r, g)) continue;
          tile.s0 = std::min(tile.s0, look.from(r, g) / kSplit);
          tile.s1 = std::max(tile.s1, ceil_div(look.to(r, g), kSplit));
        }
      if (tile.s0 >= tile.s1) tile.s0 = tile.s1 = 0;
      tiles.push_back(tile);
    }
  }
  return tiles;
}

int rows_of(const Tile& tile, const Look& look) { return (tile.t1 - tile.t0) * look.group; }

void clear(Partial* p, int n, int dim) {
  for (int r = 0; r < n; r++) {
    p[r].most = kUnseen;
    p[r].sum = 0;
    std::memset(p[r].out, 0, sizeof(float) * dim);
  }
}

void finish(const Partial* whole, const Look& look, const Tile& tile, int g, float* out, float* lse) {
  const int heads = look.kv_heads * look.group;
  for (int i = 0; i < rows_of(tile, look); i++) {
    const Partial& p = whole[i];
    const size_t row = static_cast<size_t>(tile.t0 + i / look.group) * heads + g * look.group + i % look.group;
    const float inverse = p.sum == 0.f ? 0.f : 1.f / p.sum;  // NaN stays NaN
    for (int d = 0; d < look.dim; d++) out[row * look.dim + d] = p.out[d] * inverse + 0.f;  // never a negative zero
    if (lse != nullptr) lse[row] = p.sum == 0.f ? -INFINITY : p.most + std::log(p.sum);
  }
}

Look with_table(const Look& look, const Tile& tile) {
  Look own = look;
  own.table = tile.table;
  return own;
}

// The first token that head g of a tile sees, INT32_MAX if it sees none.
int first_token(const Look& look, const Tile& tile, int g) {
  int lo = INT32_MAX;
  for (int t = tile.t0; t < tile.t1; t++)
    if (look.from(t, g) < look.to(t, g)) lo = std::min(lo, look.from(t, g));
  return lo;
}

// Whether any row of a tile sees so much of head g's pages.
bool sees(const Look& look, const Tile& tile, int g, int token) {
  for (int t = tile.t0; t < tile.t1; t++)
    if (token < look.to(t, g)) return true;
  return false;
}

// Where a tile's walk over head g begins, null if it sees nothing.
const uint8_t* first_page(const Look& look, const Tile& tile, int g) {
  const int lo = first_token(look, tile, g);
  return lo == INT32_MAX ? nullptr : with_table(look, tile).page(lo / kPage, g);
}

// One tile over head g, split after split; `next` is the page to fetch at its end.
void walk(const Kernels& isa, const Look& look, const Tile& tile, int g, const uint8_t* next, float* out, float* lse) {
  static thread_local std::unique_ptr<Partial[]> sums(new Partial[kTile]), part(new Partial[kTile]);
  const int n = rows_of(tile, look);
  Look own = with_table(look, tile);
  if (tile.s0 == tile.s1) clear(sums.get(), n, look.dim);
  for (int s = tile.s0; s < tile.s1; s++) {
    own.next = s + 1 < tile.s1 && sees(look, tile, g, (s + 1) * kSplit) ? own.page((s + 1) * (kSplit / kPage), g) : next;
    isa.attend(own, g, tile.t0, tile.t1, s, s == tile.s0 ? sums.get() : part.get());
    for (int r = 0; r < n && s > tile.s0; r++) isa.merge(sums[r], part[r], look.dim);
  }
  finish(sums.get(), look, tile, g, out, lse);
}

}  // namespace

void attend(const Kernels& isa, const Look& look, const std::vector<Span>& streams, const int32_t* tables,
            ptrdiff_t table_stride, float* out, float* lse) {
  const std::vector<Tile> tiles = tiles_of(look, streams, tables, table_stride);
  Pool& pool = Pool::get();
  const int heads = look.kv_heads;
  int splits = 0;
  size_t room = 0;  // partials, if every split is a task
  double work = 0;
  for (const Tile& tile : tiles) {
    const int rows = rows_of(tile, look), own = tile.s1 - tile.s0;
    splits = std::max(splits, own);
    room += static_cast<size_t>(rows) * static_cast<size_t>(own) * static_cast<size_t>(heads);
    const int parted = look.head_step ? heads : 1;  // heads that see something of their own
    for (int t = tile.t0; t < tile.t1; t++)
      for (int g = 0; g < parted; g++)
        work += static_cast<double>(std::max(0, look.to(t, g) - look.from(t, g))) * look.group * (heads / parted) * look.dim;
  }

  // Enough tiles, or too much to keep: each walks all its splits, head after head, for those lie side by side.
  const int most = static_cast<int>(tiles.size()), threads = pool.threads();
  if (most >= 4 * threads) {
    pool.each(most, [&](int i) {
      const uint8_t* after = i + threads < most ? first_page(look, tiles[i + threads], 0) : nullptr;
      for (int g = 0; g < heads; g++)
        walk(isa, look, tiles[i], g, g + 1 < heads ? first_page(look, tiles[i], g + 1) : after, out, lse);
    }, work >= kAlone);
    return;
  }
  if (most * heads >= 4 * threads || splits <= 1 || threads == 1 || room > kMostPartials) {
    pool.each(most * heads, [&](int i) { walk(isa, look, tiles[i / heads], i % heads, nullptr, out, lse); }, work >= kAlone);
    return;
  }

  // Few rows over a long context: every split of every head is a task of its own, merged afterwards in the same order as
  // above. Heads of one split follow each other, as they do in memory.
  struct Task {
    int tile, split, g;
    size_t at;
  };
  static thread_local std::vector<Task> tasks;
  static thread_local Scratch<Partial> kept;
  Partial* parts = kept.get(room + kTile);
  tasks.clear();
  size_t at = 0;
  for (int i = 0; i < most; i++)
    for (int s = tiles[i].s0; s < tiles[i].s1; s++)
      for (int g = 0; g < heads; g++, at += static_cast<size_t>(rows_of(tiles[i], look))) tasks.push_back({i, s, g, at});
  const std::vector<Task>& all = tasks;  // the caller's, in every thread
  const int count = static_cast<int>(all.size());
  pool.each(count, [&](int i) {
    const Task& task = all[i];
    const Tile& tile = tiles[task.tile];
    Look own = with_table(look, tile);
    if (i + threads < count) {
      const Task& after = all[i + threads];
      const int token = std::max(first_token(look, tiles[after.tile], after.g), after.split * kSplit);
      if (sees(look, tiles[after.tile], after.g, token)) own.next = with_table(look, tiles[after.tile]).page(token / kPage, after.g);
    }
    isa.attend(own, task.g, tile.t0, tile.t1, task.split, parts + task.at);
  });
  Partial* whole = parts;
  for (const Tile& tile : tiles) {
    const int n = rows_of(tile, look), own = tile.s1 - tile.s0;
    for (int g = 0; g < heads; g++) {
      Partial* first = own > 0 ? whole + g * n : parts + room;
      if (own == 0) clear(first, n, look.dim);
      for (int s = 1; s < own; s++)
        for (int r = 0; r < n; r++) isa.merge(first[r], whole[(s * heads + g) * n + r], look.dim);
      finish(first, look, tile, g, out, lse);
    }
    whole += static_cast<ptrdiff_t>(own) * heads * n;
  }
}

}  // namespace diastole
