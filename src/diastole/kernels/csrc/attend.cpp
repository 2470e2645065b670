// Attention over paged keys and values, spread over threads: see attention.inl for what one thread does, schedule.hpp for
// who does what.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>

#include "memory.hpp"
#include "ops.hpp"
#include "pool.hpp"

namespace diastole {
namespace {

using Clock = std::chrono::steady_clock;

struct Tile {  // some rows of one stream that walk its pages together
  const int32_t* table;
  int t0, t1;
};

// Items of a plan's share that nobody has taken yet. Its owners take the first, helpers the last.
struct alignas(64) Share {
  std::atomic<uint64_t> left{0};  // the first (low half), one behind the last (high half)

  void open(int first, int behind) { left.store(static_cast<uint64_t>(behind) << 32 | static_cast<uint32_t>(first)); }
  int first() {
    return take([](uint32_t a, uint32_t b) { return std::array<uint32_t, 3>{a, a + 1, b}; });
  }
  int last() {
    return take([](uint32_t a, uint32_t b) { return std::array<uint32_t, 3>{b - 1, a, b - 1}; });
  }

 private:
  // -1: nothing is left. pick: (first, behind) to the one that is taken and what first and behind are then.
  template <class Pick>
  int take(const Pick& pick) {
    uint64_t seen = left.load(std::memory_order_relaxed);
    for (;;) {
      const uint32_t a = static_cast<uint32_t>(seen), b = static_cast<uint32_t>(seen >> 32);
      if (a >= b) return -1;
      const auto [taken, first, behind] = pick(a, b);
      if (left.compare_exchange_weak(seen, uint64_t{behind} << 32 | first, std::memory_order_relaxed)) return static_cast<int>(taken);
    }
  }
};

// An array that is kept from call to call.
template <class T>
class Kept {
 public:
  T* get(size_t n) {
    if (n > size_) items_.reset(new T[size_ = n + n / 4]);
    return items_.get();
  }

 private:
  std::unique_ptr<T[]> items_;
  size_t size_ = 0;
};

std::vector<Tile> tiles_of(const Look& look, const std::vector<Span>& streams, const int32_t* tables, ptrdiff_t stride) {
  std::vector<Tile> tiles;
  const int most = std::max(1, kTile / look.group);
  for (size_t b = 0; b < streams.size(); b++)
    for (int t = streams[b].t0; t < streams[b].t1; t += most)
      tiles.push_back({tables + static_cast<ptrdiff_t>(b) * stride, t, std::min(t + most, streams[b].t1)});
  return tiles;
}

// What head g of a tile's rows has to look at.
Output output_of(const Look& look, const Tile& tile, int g) {
  Output o{(tile.t1 - tile.t0) * look.group, INT32_MAX, 0, look.split_tokens};
  for (int t = tile.t0; t < tile.t1; t++) {
    if (look.from(t, g) >= look.to(t, g)) continue;
    o.lo = std::min(o.lo, look.from(t, g));
    o.hi = std::max(o.hi, look.to(t, g));
  }
  return o;
}

// One call's attention while its plan is carried out.
class Run {
 public:
  const Kernels& isa;
  const Look& look;
  const std::vector<Tile>& tiles;
  const std::vector<Output>& outputs;  // of tile i and head g at i * heads + g
  const Plan& plan;
  Share* shares;
  std::atomic<int>* open;  // splits of an output that are not done
  const size_t* places;    // of an output's partials
  Partial* partials;
  float *out, *lse;

  void work(int w, Spent* spent) const {
    const int count = plan.workers();
    for (int i; (i = shares[w % count].first()) >= 0;) item(i, w, spent);
    if (plan.help)
      for (int k = 1; k < count; k++)
        for (int i; (i = shares[(w + k) % count].last()) >= 0;) item(i, w, spent);
  }

  // Outputs that were computed in parts, dealt out to so many workers.
  void pass(int w, int workers, Spent* spent) const {
    for (size_t o = static_cast<size_t>(w); o < outputs.size(); o += static_cast<size_t>(workers))
      if (outputs[o].splits() > 1 && open[o].load(std::memory_order_relaxed) == 0) merge(static_cast<int>(o), w, spent);
  }

 private:
  void item(int i, int w, Spent* spent) const {
    const Item& item = plan.items[static_cast<size_t>(i)];
    const Output& o = outputs[static_cast<size_t>(item.output)];
    if (spent != nullptr) spent[w].splits += item.s1 - item.s0;
    if (item.s0 == o.first() && item.s1 == o.last()) return walk(item, i);
    Partial* to = partials + places[item.output] + static_cast<ptrdiff_t>(item.s0 - o.first()) * o.rows;
    for (int s = item.s0; s < item.s1; s++, to += o.rows) split(item, i, s, to);
    // Who comes last merges, so nobody waits for anybody.
    const int own = item.s1 - item.s0;
    if (open[item.output].fetch_sub(own, std::memory_order_acq_rel) == own && !plan.pass) merge(item.output, w, spent);
  }

  void split(const Item& item, int i, int s, Partial* to) const {
    const Tile& tile = tile_of(item.output);
    const int g = head_of(item.output);
    Look own = look;
    own.table = tile.table;
    own.next = s + 1 < item.s1 ? page(item.output, s + 1) : first_page_behind(i);
    isa.attend(own, g, tile.t0, tile.t1, s, to);
  }

  // A whole output, split after split.
  void walk(const Item& item, int i) const {
    static thread_local std::unique_ptr<Partial[]> sums(new Partial[kTile]), part(new Partial[kTile]);
    const int n = outputs[static_cast<size_t>(item.output)].rows;
    if (item.s0 == item.s1) clear(sums.get(), n);
    for (int s = item.s0; s < item.s1; s++) {
      split(item, i, s, s == item.s0 ? sums.get() : part.get());
      for (int r = 0; r < n && s > item.s0; r++) isa.merge(sums[r], part[r], look.dim);
    }
    finish(sums.get(), item.output);
  }

  void merge(int output, int w, Spent* spent) const {
    const Clock::time_point start = spent == nullptr ? Clock::time_point() : Clock::now();
    const Output& o = outputs[static_cast<size_t>(output)];
    Partial *whole = partials + places[output], *part = whole + o.rows;
    for (int s = 1; s < o.splits(); s++)
      for (int r = 0; r < o.rows; r++, part++) isa.merge(whole[r], *part, look.dim);
    finish(whole, output);
    if (spent != nullptr) spent[w].merging += std::chrono::duration<double>(Clock::now() - start).count();
  }

  void clear(Partial* p, int n) const {
    for (int r = 0; r < n; r++) {
      p[r].most = kUnseen;
      p[r].sum = 0;
      std::memset(p[r].out, 0, sizeof(float) * static_cast<size_t>(look.dim));
    }
  }

  void finish(const Partial* whole, int output) const {
    const int heads = look.kv_heads * look.group, g = head_of(output);
    for (int i = 0; i < outputs[static_cast<size_t>(output)].rows; i++) {
      const Partial& p = whole[i];
      const size_t row = static_cast<size_t>(tile_of(output).t0 + i / look.group) * heads + g * look.group + i % look.group;
      const float inverse = p.sum == 0.f ? 0.f : 1.f / p.sum;  // NaN stays NaN
      for (int d = 0; d < look.dim; d++) out[row * look.dim + d] = p.out[d] * inverse + 0.f;  // never a negative zero
      if (lse != nullptr) lse[row] = p.sum == 0.f ? -INFINITY : p.most + std::log(p.sum);
    }
  }

  const Tile& tile_of(int output) const { return tiles[static_cast<size_t>(output / look.kv_heads)]; }
  int head_of(int output) const { return output % look.kv_heads; }

  // The first page that an output looks at in a split, null if it sees nothing.
  const uint8_t* page(int output, int s) const {
    const Output& o = outputs[static_cast<size_t>(output)];
    if (o.lo >= o.hi) return nullptr;
    Look own = look;
    own.table = tile_of(output).table;
    return own.page(std::max(o.lo, s * o.split) / kPage, head_of(output));
  }
  const uint8_t* first_page_behind(int i) const {
    if (static_cast<size_t>(i) + 1 >= plan.items.size()) return nullptr;
    const Item& after = plan.items[static_cast<size_t>(i) + 1];
    return page(after.output, after.s0);
  }
};

}  // namespace

void attend(const Kernels& isa, const Look& look, const std::vector<Span>& streams, const int32_t* tables,
            ptrdiff_t table_stride, const Schedule& asked, float* out, float* lse, Spent* spent) {
  static thread_local std::vector<Output> outputs;
  static thread_local std::vector<size_t> places;
  static thread_local Plan plan;
  static thread_local Kept<Share> shares;
  static thread_local Kept<std::atomic<int>> open;
  static thread_local Scratch<Partial> partials;
  Look own = look;
  own.split_tokens = asked.split;
  const std::vector<Tile> tiles = tiles_of(own, streams, tables, table_stride);
  outputs.clear();
  double work = 0;
  for (const Tile& tile : tiles)
    for (int g = 0; g < look.kv_heads; g++) {
      outputs.push_back(output_of(own, tile, g));
      const Output& o = outputs.back();
      work += static_cast<double>(std::max(0, o.hi - o.lo)) * o.rows * look.dim;
    }
  Schedule how = asked;
  if (work < kAlone) how.workers = 1;
  plan.clear();
  how.plan(outputs, how, plan);

  std::atomic<int>* left = open.get(outputs.size());
  for (size_t o = 0; o < outputs.size(); o++) left[o].store(outputs[o].splits(), std::memory_order_relaxed);
  places.assign(outputs.size(), 0);
  size_t room = 0;
  for (const Item& item : plan.items) {  // the first of a cut output makes room for all
    const Output& o = outputs[static_cast<size_t>(item.output)];
    if (item.s0 != o.first() || item.s1 == o.last()) continue;
    places[static_cast<size_t>(item.output)] = room;
    room += static_cast<size_t>(o.rows) * static_cast<size_t>(o.splits());
  }
  const int count = plan.workers();
  Share* all = shares.get(static_cast<size_t>(count));
  for (int w = 0; w < count; w++) all[w].open(plan.shares[static_cast<size_t>(w)], plan.shares[static_cast<size_t>(w) + 1]);

  const Run run{isa, own, tiles, outputs, plan, all, left, places.data(), partials.get(std::max(room, size_t{1})), out, lse};
  const auto timed = [&](int w, const auto& part) {
    const Clock::time_point start = spent == nullptr ? Clock::time_point() : Clock::now();
    part(w);
    if (spent != nullptr) spent[w].seconds += std::chrono::duration<double>(Clock::now() - start).count();
  };
  Pool& pool = Pool::get();
  pool.each(how.workers, [&](int w) { timed(w, [&](int me) { run.work(me, spent); }); });
  if (plan.pass) pool.each(how.workers, [&](int w) { timed(w, [&](int me) { run.pass(me, how.workers, spent); }); });
}

void attend(const Kernels& isa, const Look& look, const std::vector<Span>& streams, const int32_t* tables,
            ptrdiff_t table_stride, float* out, float* lse) {
  attend(isa, look, streams, tables, table_stride, {plan_lean, Pool::get().threads(), 1, kSplit, kRoom}, out, lse, nullptr);
}

}  // namespace diastole
