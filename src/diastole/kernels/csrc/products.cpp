// Products with packed matrices, spread over threads.
#include "products.hpp"

#include <algorithm>
#include <atomic>
#include <memory>

#include "pool.hpp"

namespace diastole {
namespace {

constexpr int kTokenBlock = 128;  // rows of x that stay in a core's cache while weights pass
constexpr size_t kTiledBytes = size_t{1} << 20;  // of them where opening weights is dear: half of a core's second cache
constexpr int kTogether = 16;      // rows that are prepared together
constexpr int kMany = 64;           // rows from which multiplying takes longer than reading the weights
constexpr int kShare = 2;          // blocks of weight rows that are multiplied together with many rows
constexpr uint32_t kPiece = 6;     // and with few
constexpr int kStripFew = 256;     // columns of gate and up at a time for few rows: long reads
constexpr int kStripMany = kGroup;  // for many: what is between must stay in the nearest caches

// Blocks of weight rows in one range per thread. A thread takes piece after piece from the front of its own, for memory
// is read fastest in one long stream, and when that is empty from the back of others': a thread that is slower, or does
// not come at all, does less.
class Ranges {
 public:
  Ranges(int blocks, int threads) : threads_(threads) {
    static thread_local std::unique_ptr<Slot[]> kept;
    static thread_local int room = 0;
    if (room < threads) kept.reset(new Slot[static_cast<size_t>(threads)]), room = threads;
    slots_ = kept.get();
    for (int i = 0; i < threads; i++) {
      const auto edge = [&](int n) { return static_cast<uint32_t>(static_cast<int64_t>(blocks) * n / threads / 2 * 2); };
      slots_[i].range.store(pack(edge(i), i + 1 < threads ? edge(i + 1) : static_cast<uint32_t>(blocks)), std::memory_order_relaxed);
    }
  }

  // f(piece) until nothing is left anywhere, beginning with range i.
  template <class F>
  void work(int i, uint32_t piece, const F& f) const {
    for (Span found; take(i, piece, true, found);) f(found);
    for (int other = (i + 1) % threads_; other != i; other = (other + 1) % threads_)
      for (Span found; take(other, piece, false, found);) f(found);
  }

 private:
  struct alignas(64) Slot {
    std::atomic<uint64_t> range{0};  // first block in the upper half, end in the lower
  };
  static uint64_t pack(uint32_t first, uint32_t end) { return static_cast<uint64_t>(first) << 32 | end; }

  bool take(int i, uint32_t piece, bool front, Span& found) const {
    uint64_t seen = slots_[i].range.load(std::memory_order_relaxed);
    for (;;) {
      const uint32_t first = static_cast<uint32_t>(seen >> 32), end = static_cast<uint32_t>(seen);
      if (first >= end) return false;
      const uint32_t n = std::min(piece, end - first);
      if (!slots_[i].range.compare_exchange_weak(seen, front ? pack(first + n, end) : pack(first, end - n))) continue;
      found = front ? Span{static_cast<int>(first), static_cast<int>(first + n)} : Span{static_cast<int>(end - n), static_cast<int>(end)};
      return true;
    }
  }

  Slot* slots_;
  int threads_;
};

int token_block(const Kernels& isa, const Matrix& w) {
  if (!isa.tiles) return kTokenBlock;
  return std::clamp(static_cast<int>(kTiledBytes / (2 * static_cast<size_t>(w.k))) / 64 * 64, 64, 512);
}

// f(some blocks, part of the rows of x) for all of a matrix and all rows.
template <class F>
void spread(const Kernels& isa, const Matrix& w, int blocks, int t, bool share, const F& f) {
  Pool& pool = Pool::get();
  if (!share) return f(Span{0, blocks}, Span{0, t});
  if (t <= kMany) {  // reading the weights is what takes time
    const Ranges ranges(blocks, pool.threads());
    pool.each(pool.threads(), [&](int i) { ranges.work(i, kPiece, [&](Span some) { f(some, Span{0, t}); }); });
    return;
  }
  const int step = std::min(t, token_block(isa, w)), count = ceil_div(blocks, kShare);
  pool.each(count * ceil_div(t, step), [&](int i) {
    const int r = i / count * step, first = i % count * kShare;
    f(Span{first, std::min(first + kShare, blocks)}, Span{r, std::min(r + step, t)});
  });
}

// f(rows t0..t1) for all rows.
template <class F>
void spread_rows(int t, bool share, const F& f) {
  const int part = t < 4 * kTogether ? kTogether / 2 : kTogether;
  Pool::get().each(ceil_div(t, part), [&](int i) { f(i * part, std::min((i + 1) * part, t)); }, share && t >= kTogether / 2);
}

bool worth_sharing(const Matrix& w, int t) { return static_cast<double>(w.n) * w.k * t >= kAlone; }

uint8_t* shelf(const Matrix& w) {
  static thread_local Scratch<uint8_t> memory;
  return memory.get(shelf_bytes(w.k));
}

}  // namespace

Rows Activations::open(Weight kind, int t, int k) {
  Rows rows{t, k, nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr, errands_};
  const size_t n = static_cast<size_t>(t + kTogether) * k, groups = n / kGroup;  // kernels may read whole sixteens
  if (kind != Weight::f32) rows.h = h_.get(n);
  if (form_of(kind) == Weight::q8) {
    rows.q = q_.get(2 * n);
    rows.scale = scale_.get(2 * groups);
    rows.offset = offset_.get(groups);
    rows.total = total_.get(2 * groups);
  }
  return rows;
}

Rows Activations::take(const Kernels& isa, Weight kind, const float* x, ptrdiff_t stride, int t, int k, bool share) {
  Rows rows = open(kind, t, k);
  rows.f = x;
  rows.stride = stride;
  if (kind == Weight::f32) return rows;
  spread_rows(t, share, [&](int t0, int t1) { isa.prepare(kind, rows, {x + t0 * stride, stride, t0, t1, 0, k}); });
  return rows;
}

Rows Activations::normed(const Kernels& isa, Weight kind, const float* x, const float* weight, float eps, int t, int k) {
  Rows rows = open(kind, t, k);
  if (kind == Weight::f32) {
    float* all = f_.get(static_cast<size_t>(t) * k);
    rows.f = all;
    rows.stride = k;
    spread_rows(t, true, [&](int t0, int t1) {
      for (int i = t0; i < t1; i++) isa.rmsnorm(x + static_cast<size_t>(i) * k, weight, eps, all + static_cast<size_t>(i) * k, k);
    });
    return rows;
  }
  spread_rows(t, true, [&](int t0, int t1) {
    static thread_local Scratch<float> memory;
    float* row = memory.get(k);
    for (int i = t0; i < t1; i++) {
      isa.rmsnorm(x + static_cast<size_t>(i) * k, weight, eps, row, k);
      isa.prepare(kind, rows, {row, k, i, i + 1, 0, k});
    }
  });
  return rows;
}

Rows Activations::gated(const Kernels& isa, Weight kind, const Half& gate, const Half& up, bool gelu, const Rows& x, int k) {
  Rows act = open(kind, x.t, k);
  if (x.t == 0) return act;
  const int wide = x.t > kTogether ? kStripMany : kStripFew;
  const bool share = 2 * static_cast<double>(k) * x.k * x.t >= kAlone;
  spread(isa, gate.w, k / kGroup, x.t, share, [&](Span strips, Span part) {
    static thread_local Scratch<float> memory;
    const int rows = part.t1 - part.t0;
    float* product = memory.get(2 * static_cast<size_t>(rows) * wide);
    float* other = product + static_cast<size_t>(rows) * wide;
    for (int c0 = strips.t0 * kGroup; c0 < strips.t1 * kGroup; c0 += wide) {
      const int c1 = std::min(c0 + wide, strips.t1 * kGroup);
      const auto columns = [&](const Half& half, float* to) {
        const int n0 = half.row + c0, n1 = half.row + c1;
        isa.multiply(half.w, x, Out::at(to, wide, part.t0, n0), n0 / kRows, n1 / kRows, part.t0, part.t1, shelf(half.w));
      };
      columns(gate, product);
      columns(up, other);
      for (int r = 0; r < rows; r++) isa.gated(product + r * wide, other + r * wide, gelu, product + r * wide, c1 - c0);
      isa.prepare(kind, act, {product, wide, part.t0, part.t1, c0, c1});
    }
  });
  return act;
}

void multiply(const Kernels& isa, const Matrix& w, const Rows& x, const Out& out) {
  if (x.t == 0) return;
  const int blocks = ceil_div(w.n, kRows);
  const auto part = [&](Span share, Span rows) { isa.multiply(w, x, out, share.t0, share.t1, rows.t0, rows.t1, shelf(w)); };
  spread(isa, w, blocks, x.t, worth_sharing(w, x.t), part);
}

void linear(const Kernels& isa, const Matrix& w, const float* x, ptrdiff_t x_stride, int t, const Out& out) {
  static thread_local Activations room;
  multiply(isa, w, room.take(isa, w.kind, x, x_stride, t, w.k, worth_sharing(w, t)), out);
}

}  // namespace diastole
