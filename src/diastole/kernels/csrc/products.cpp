// Products with packed matrices, spread over threads.
#include "products.hpp"

#include <algorithm>

#include "pool.hpp"

namespace diastole {
namespace {

constexpr int kTokenBlock = 128;  // rows of x that stay in a core's cache while weights pass
constexpr size_t kTiledBytes = size_t{1} << 20;  // of them where opening weights is dear: half of a core's second cache
constexpr int kTogether = 16;      // rows that are prepared together
constexpr int kMany = 64;           // rows from which multiplying takes longer than reading the weights
constexpr int kStripFew = 256;     // columns of gate and up at a time for few rows: long reads
constexpr int kStripMany = kGroup;  // for many: what is between must stay in the nearest caches

// Blocks of weight rows in shares. Few rows of x: a large one per thread, for memory is read fastest in few long streams,
// and then small ones, which even out that one thread was slower. Many: all small.
class Shares {
 public:
  Shares(int blocks, int threads, bool many) : blocks_(blocks), threads_(threads) {
    if (!many) large_ = static_cast<int>(kLarge * blocks) / threads / 2 * 2;
    small_ = many ? kSmall : std::max(2, ceil_div(blocks - large_ * threads, 2 * threads * 2) * 2);
  }
  int count() const { return (large_ > 0 ? threads_ : 0) + ceil_div(blocks_ - large_ * threads_, small_); }
  Span at(int i) const {
    if (large_ > 0 && i < threads_) return {i * large_, (i + 1) * large_};
    const int first = large_ * threads_ + (i - (large_ > 0 ? threads_ : 0)) * small_;
    return {first, std::min(first + small_, blocks_)};
  }

 private:
  static constexpr double kLarge = 0.6;
  static constexpr int kSmall = 2;
  int blocks_, threads_, large_ = 0, small_;
};

int token_block(const Kernels& isa, const Matrix& w) {
  if (!isa.tiles) return kTokenBlock;
  return std::clamp(static_cast<int>(kTiledBytes / (2 * static_cast<size_t>(w.k))) / 64 * 64, 64, 512);
}

// f(share of blocks, part of the rows of x) for all of a matrix and all rows.
template <class F>
void spread(const Kernels& isa, const Matrix& w, int blocks, int t, bool share, const F& f) {
  Pool& pool = Pool::get();
  const Shares shares(blocks, pool.threads(), t > kMany);
  const int step = std::min(t, token_block(isa, w));
  pool.each(shares.count() * ceil_div(t, step), [&](int i) {
    const int r = i / shares.count() * step;
    f(shares.at(i % shares.count()), Span{r, std::min(r + step, t)});
  }, share);
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
  Rows rows{t, k, nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  const size_t n = static_cast<size_t>(t + kTogether) * k, groups = n / kGroup;  // kernels may read whole sixteens
  if (kind != Weight::f32) rows.h = h_.get(n);
  if (kind == Weight::q8 || kind == Weight::q4) {
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
  if (!worth_sharing(w, x.t)) return part({0, blocks}, {0, x.t});
  spread(isa, w, blocks, x.t, true, part);
}

void linear(const Kernels& isa, const Matrix& w, const float* x, ptrdiff_t x_stride, int t, const Out& out) {
  static thread_local Activations room;
  multiply(isa, w, room.take(isa, w.kind, x, x_stride, t, w.k, worth_sharing(w, t)), out);
}

}  // namespace diastole
