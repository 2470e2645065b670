#include "ops.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>

#include "memory.hpp"
#include "pool.hpp"

namespace diastole {
namespace {

constexpr double kAlone = 40e3;  // multiply-adds below which waking others costs more than it brings
constexpr int kTokenBlock = 128;  // rows of x that stay in a core's cache while weights pass
constexpr size_t kTiledBytes = size_t{1} << 20;  // of them where opening weights is dear: half of a core's second cache
constexpr int kTogether = 16;  // rows that are prepared together
constexpr size_t kMostPartials = (size_t{32} << 20) / sizeof(Partial);

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Scratch memory of the calling thread, grown and kept.
template <class T>
T* scratch(std::vector<T>& store, size_t n) {
  if (store.size() < n) store.resize(n);
  return store.data();
}

Rows open_rows(Weight kind, const float* x, ptrdiff_t stride, int t, int k) {
  // Aligned, for a row of a tile that crosses cache lines takes twice as long to load.
  static thread_local Scratch<uint16_t> h;
  static thread_local Scratch<int8_t> q;
  static thread_local Scratch<float> scale, offset, turned;
  static thread_local Scratch<int32_t> total;
  Rows rows{t, k, x, stride, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  const size_t n = static_cast<size_t>(t + kTogether) * k, groups = n / kGroup;  // kernels may read whole sixteens
  if (kind == Weight::bf16) rows.h = h.get(n);
  if (kind == Weight::q8 || kind == Weight::q4) {
    rows.q = q.get(2 * n);
    rows.scale = scale.get(2 * groups);
    rows.offset = offset.get(groups);
    rows.total = total.get(2 * groups);
    rows.turned = turned.get(2 * groups);
  }
  return rows;
}

// Blocks of weight rows in shares: a large one per thread, for memory is read fastest in few long streams, and then
// small ones, which even out that one thread was slower.
class Shares {
 public:
  Shares(int blocks, int threads) : blocks_(blocks), threads_(threads) {
    large_ = static_cast<int>(kLarge * blocks) / threads / 2 * 2;
    small_ = std::max(2, ceil_div(blocks - large_ * threads, 2 * threads * 2) * 2);
  }
  int count() const { return (large_ > 0 ? threads_ : 0) + ceil_div(blocks_ - large_ * threads_, small_); }
  Span at(int i) const {
    if (large_ > 0 && i < threads_) return {i * large_, (i + 1) * large_};
    const int first = large_ * threads_ + (i - (large_ > 0 ? threads_ : 0)) * small_;
    return {first, std::min(first + small_, blocks_)};
  }

 private:
  static constexpr double kLarge = 0.6;
  int blocks_, threads_, large_, small_;
};

int token_block(const Kernels& isa, const Matrix& w) {
  if (!isa.tiles) return kTokenBlock;
  return std::clamp(static_cast<int>(kTiledBytes / (2 * static_cast<size_t>(w.k))) / 64 * 64, 64, 512);
}

}  // namespace

void linear(const Kernels& isa, const Matrix& w, const float* x, ptrdiff_t x_stride, int t, const Out& out) {
  Rows rows = open_rows(w.kind, x, x_stride, t, w.k);
  const int blocks = ceil_div(w.n, kRows);
  Pool& pool = Pool::get();
  const auto multiply = [&](Span share, Span part) {
    static thread_local Scratch<uint8_t> shelf;
    isa.multiply(w, rows, out, share.t0, share.t1, part.t0, part.t1, shelf.get(shelf_bytes(w.k)));
  };
  if (static_cast<double>(w.n) * w.k * t < kAlone) {
    isa.prepare(w.kind, rows, 0, t);
    multiply({0, blocks}, {0, t});
    return;
  }
  if (t < kTogether / 2) {
    isa.prepare(w.kind, rows, 0, t);
  } else {
    const int part = t < 4 * kTogether ? kTogether / 2 : kTogether;
    pool.each(ceil_div(t, part), [&](int i) {
      isa.prepare(w.kind, rows, i * part, std::min((i + 1) * part, t));
    });
  }
  const Shares shares(blocks, pool.threads());
  const int step_t = std::min(t, token_block(isa, w));
  pool.each(shares.count() * ceil_div(t, step_t), [&](int i) {
    const int r = i / shares.count() * step_t;
    multiply(shares.at(i % shares.count()), {r, std::min(r + step_t, t)});
  });
}

void embed(const Kernels& isa, const Matrix& w, const int32_t* ids, int t, float* out, ptrdiff_t stride) {
  const int part = 32;
  Pool::get().each(ceil_div(t, part),
                   [&](int i) { isa.embed(w, ids, out, stride, i * part, std::min((i + 1) * part, t)); });
}

// ---- rows

namespace {

constexpr int kFewRows = 8;

// f(row) for every row; few are not worth waking anybody.
template <class F>
void each_row(int t, const F& f) {
  if (t < kFewRows)
    for (int i = 0; i < t; i++) f(i);
  else
    Pool::get().each(ceil_div(t, kFewRows), [&](int part) {
      for (int i = part * kFewRows; i < std::min((part + 1) * kFewRows, t); i++) f(i);
    });
}

}  // namespace

void rmsnorm(const Kernels& isa, const float* x, ptrdiff_t x_stride, const float* weight, float eps, float* out,
             ptrdiff_t out_stride, int t, int heads, int k) {
  each_row(t, [&](int i) {
    for (int h = 0; h < heads; h++) isa.rmsnorm(x + i * x_stride + h * k, weight, eps, out + i * out_stride + h * k, k);
  });
}

void rope(const Kernels& isa, float* x, ptrdiff_t stride, const int32_t* pos, const float* table, int t, int heads,
          int dim, int rotated) {
  each_row(t, [&](int i) {
    isa.rope(x + i * stride, table + static_cast<size_t>(pos[i]) * rotated, heads, dim, rotated);
  });
}

void gated(const Kernels& isa, const float* gu, ptrdiff_t gu_stride, bool gelu, float* out, ptrdiff_t out_stride, int t,
           int n) {
  each_row(t, [&](int i) {
    const float* gate = gu + i * gu_stride;
    isa.gated(gate, gate + n, gelu, out + i * out_stride, n);
  });
}

void kv_write(const Kernels& isa, const Pages& pages, const int64_t* rows, int t, const float* k, ptrdiff_t k_stride,
              const float* v, ptrdiff_t v_stride) {
  const auto head = [&](int h) {  // one thread per head: neighbouring tokens share cache lines
    for (int i = 0; i < t; i++)
      isa.kv_write(pages.kind, pages.at(rows[i], h), static_cast<int>(rows[i] % kPage), pages.dim,
                   k + i * k_stride + h * pages.dim, v + i * v_stride + h * pages.dim);
  };
  if (t < 16)
    for (int h = 0; h < pages.heads; h++) head(h);
  else
    Pool::get().each(pages.heads, head);
}

// ---- attention

namespace {

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
      for (int r = tile.t0; r < tile.t1; r++) {
        if (look.lo[r] >= look.hi[r]) continue;
        tile.s0 = std::min(tile.s0, look.lo[r] / kSplit);
        tile.s1 = std::max(tile.s1, ceil_div(look.hi[r], kSplit));
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

// The first token that a tile sees, INT32_MAX if it sees none.
int first_token(const Look& look, const Tile& tile) {
  int lo = INT32_MAX;
  for (int t = tile.t0; t < tile.t1; t++)
    if (look.lo[t] < look.hi[t]) lo = std::min(lo, look.lo[t]);
  return lo;
}

// Where a tile's walk over head g begins, null if it sees nothing.
const uint8_t* first_page(const Look& look, const Tile& tile, int g) {
  const int lo = first_token(look, tile);
  return lo == INT32_MAX ? nullptr : with_table(look, tile).page(lo / kPage, g);
}

// One tile over head g, split after split; `next` is the page to fetch at its end.
void walk(const Kernels& isa, const Look& look, const Tile& tile, int g, const uint8_t* next, float* out, float* lse) {
  static thread_local std::unique_ptr<Partial[]> sums(new Partial[kTile]), part(new Partial[kTile]);
  const int n = rows_of(tile, look);
  Look own = with_table(look, tile);
  if (tile.s0 == tile.s1) clear(sums.get(), n, look.dim);
  for (int s = tile.s0; s < tile.s1; s++) {
    own.next = s + 1 < tile.s1 ? own.page((s + 1) * (kSplit / kPage), g) : next;
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
    for (int t = tile.t0; t < tile.t1; t++)
      work += static_cast<double>(std::max(0, look.hi[t] - look.lo[t])) * look.group * heads * look.dim;
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
      own.next = with_table(look, tiles[after.tile]).page(std::max(first_token(look, tiles[after.tile]), after.split * kSplit) / kPage, after.g);
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

// ---- packing

namespace {

uint16_t to_f16(float x) {  // round half to even; too large becomes infinite
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return sign | 0x7e00u;
  if (u >= 0x477ff000u) return sign | 0x7c00u;
  if (u < 0x38800000u) {  // subnormal: let the addition round
    float y;
    std::memcpy(&y, &u, 4);
    y += 0.5f;
    std::memcpy(&u, &y, 4);
    return sign | static_cast<uint16_t>(u - 0x3f000000u);
  }
  u += 0xc8000fffu + ((u >> 13) & 1u);
  return sign | static_cast<uint16_t>(u >> 13);
}

bool finite(uint16_t half) { return (half & 0x7c00u) != 0x7c00u; }

uint16_t to_bf16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);  // NaN stays NaN
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

}  // namespace

size_t packed_bytes(Weight kind, int n, int k) {
  const size_t rows = static_cast<size_t>(ceil_div(n, kRows)) * kRows;
  switch (kind) {
    case Weight::q4: return rows / kRows * (k / kGroup) * 320;
    case Weight::q8: return rows / kRows * (k / kGroup) * (512 + 32);
    case Weight::bf16: return rows * k * 2;
    case Weight::f32: return rows * k * 4;
  }
  return 0;
}

bool pack_q4(const uint8_t* q, const float* d, const float* m, int n, int k, uint8_t* out) {
  const int groups = k / kGroup;
  std::atomic<bool> fits{true};
  Pool::get().each(ceil_div(n, kRows), [&](int b) {
    for (int g = 0; g < groups; g++) {
      uint8_t* p = out + (static_cast<size_t>(b) * groups + g) * 320;
      std::memset(p, 0, 320);
      for (int r = 0; r < kRows && b * kRows + r < n; r++) {
        const size_t row = static_cast<size_t>(b) * kRows + r;
        const uint8_t* s = q + row * k + g * kGroup;
        uint8_t any = 0;
        for (int i = 0; i < 16; i++) {
          any |= s[i] | s[16 + i];
          p[(i / 4) * 64 + r * 4 + i % 4] = static_cast<uint8_t>(s[i] | (s[16 + i] << 4));
        }
        const uint16_t dh = to_f16(d[row * groups + g]), mh = to_f16(m[row * groups + g]);
        if (any > 15 || !finite(dh) || !finite(mh)) fits.store(false, std::memory_order_relaxed);
        std::memcpy(p + 256 + 2 * r, &dh, 2);
        std::memcpy(p + 288 + 2 * r, &mh, 2);
      }
    }
  });
  return fits.load();
}

bool pack_q8(const int8_t* q, const float* d, int n, int k, uint8_t* out) {
  std::atomic<bool> fits{true};
  const int groups = k / kGroup, blocks = ceil_div(n, kRows);
  uint8_t* scales = out + static_cast<size_t>(blocks) * groups * 512;
  Pool::get().each(blocks, [&](int b) {
    for (int g = 0; g < groups; g++) {
      const size_t at = static_cast<size_t>(b) * groups + g;
      uint8_t* p = out + at * 512;
      std::memset(p, 0, 512);
      std::memset(scales + at * 32, 0, 32);
      for (int r = 0; r < kRows && b * kRows + r < n; r++) {
        const size_t row = static_cast<size_t>(b) * kRows + r;
        for (int i = 0; i < kGroup; i++)
          p[(i / 4) * 64 + r * 4 + i % 4] = static_cast<uint8_t>(q[row * k + g * kGroup + i]);
        const uint16_t dh = to_f16(d[row * groups + g]);
        if (!finite(dh)) fits.store(false, std::memory_order_relaxed);
        std::memcpy(scales + at * 32 + 2 * r, &dh, 2);
      }
    }
  });
  return fits.load();
}

void pack_bf16(const float* w, int n, int k, uint8_t* out) {
  Pool::get().each(ceil_div(n, kRows), [&](int b) {
    uint16_t* p = reinterpret_cast<uint16_t*>(out) + static_cast<size_t>(b) * k * kRows;
    for (int r = 0; r < kRows; r++)
      for (int i = 0; i < k; i++) {
        const size_t row = static_cast<size_t>(b) * kRows + r;
        p[(i / 2) * 32 + r * 2 + i % 2] = row < static_cast<size_t>(n) ? to_bf16(w[row * k + i]) : 0;
      }
  });
}

void pack_f32(const float* w, int n, int k, uint8_t* out) {
  Pool::get().each(ceil_div(n, kRows), [&](int b) {
    float* p = reinterpret_cast<float*>(out) + static_cast<size_t>(b) * k * kRows;
    for (int r = 0; r < kRows; r++)
      for (int i = 0; i < k; i++) {
        const size_t row = static_cast<size_t>(b) * kRows + r;
        p[static_cast<size_t>(i) * kRows + r] = row < static_cast<size_t>(n) ? w[row * k + i] : 0.f;
      }
  });
}

}  // namespace diastole
