#include "picking.hpp"

#include <algorithm>
#include <cmath>

#include "memory.hpp"
#include "pool.hpp"

namespace diastole {
namespace {

struct Owner {  // of a row
  std::vector<int> stream;
  explicit Owner(const std::vector<Span>& streams) {
    for (size_t b = 0; b < streams.size(); b++)
      for (int t = streams[b].t0; t < streams[b].t1; t++) stream.push_back(static_cast<int>(b));
  }
};

// Tokens by themselves that one thread attends to at a time, of so many: of few tokens few, or threads would wait; of many
// as many as attention to everything takes.
inline int part_of(int tokens) { return tokens <= kSplit ? 2 * kPage : kSplit; }

}  // namespace

void scores(const Kernels& isa, const Look& look, const std::vector<Span>& streams, const int32_t* tables, ptrdiff_t table_stride,
            const float* less, float* s, int heads, int n) {
  const Owner owner(streams);
  const int rows = static_cast<int>(owner.stream.size()), splits = ceil_div(n, kSplit), kv_heads = look.kv_heads;
  const int per = heads / kv_heads;  // rows of s for each of them
  const double work = static_cast<double>(rows) * n * kv_heads * look.group * look.dim;
  Pool::get().each(rows * kv_heads * splits, [&](int i) {
    static thread_local std::vector<float> room;
    room.resize(static_cast<size_t>(look.group) * kSplit);
    const int split = i % splits, g = i / splits % kv_heads, t = i / splits / kv_heads;
    const int from = split * kSplit, to = std::min(n, from + kSplit);
    const int lo = std::max(from, look.from(t, g)), hi = std::min(to, look.to(t, g));
    Look own = look;
    own.table = tables + owner.stream[static_cast<size_t>(t)] * table_stride;
    if (lo < hi) isa.score(own, g, t, split, room.data(), kSplit);
    for (int h = 0; h < per; h++) {
      float* to_row = s + (static_cast<size_t>(t) * heads + static_cast<size_t>(g * per + h)) * n;
      std::fill(to_row + from, to_row + to, -INFINITY);
      if (lo >= hi) continue;
      for (int j = h; j < look.group; j += per) {
        const float off = less == nullptr ? 0.f : less[static_cast<size_t>(t) * kv_heads * look.group + static_cast<size_t>(g * look.group + j)];
        isa.raise(room.data() + static_cast<size_t>(j) * kSplit + static_cast<size_t>(lo - from), hi - lo, off, to_row + lo);
      }
    }
  }, work >= kAlone);
}

int top_places(const Kernels& isa, const float* x, int n, int k, int32_t* places) {
  static thread_local Scratch<float> values;
  static thread_local Scratch<int32_t> all;
  const size_t room = static_cast<size_t>(n) + 16;
  int32_t* found = all.get(room);
  const int count = isa.pick(x, n, k, found, values.get(room));
  std::copy_n(found, count, places);
  return count;
}

size_t alone_page_bytes(Alone form, int dim) {
  return static_cast<size_t>(form == Alone::bf16 ? kPage * dim * 2 : kPage * dim / 2 + kPage * 4);
}

void keys_write(const Kernels& isa, Alone form, const Pages& to, const int64_t* rows, int t, const float* k, ptrdiff_t stride, int dim,
                const int32_t* channels, int count) {
  const int part = t < kPage ? 8 : kPage;  // as in kv_write
  Pool::get().each(ceil_div(t, part), [&](int block) {
    alignas(64) float some[kMaxDim] = {};
    for (int i = block * part; i < std::min((block + 1) * part, t); i++)
      for (int h = 0; h < to.heads; h++) {
        const float* key = k + i * stride + static_cast<ptrdiff_t>(h) * dim;
        for (int c = 0; c < count; c++) some[c] = key[channels[h * count + c]];
        const float* from = channels == nullptr ? key : some;
        const int slot = static_cast<int>(rows[i] % kPage);
        if (form == Alone::bf16)
          isa.key_write(to.at(rows[i], h), slot, to.dim, from);
        else
          isa.label_write(to.at(rows[i], h), slot, to.dim, from, channels == nullptr ? dim : count);
      }
  }, t >= 16);
}

namespace {

// Of each row and head of scores s (r, kv heads, n) the tokens that it gets.
void take(const Kernels& isa, const Choice& choice, int kv_heads, float* s, int n, int wide, int64_t* at, int32_t* counts) {
  Pool::get().each(choice.r * kv_heads, [&](int i) {
    static thread_local std::vector<int32_t> places;
    const int t = i / kv_heads, lo = choice.lo[t], hi = choice.hi[t];
    float* row = s + static_cast<size_t>(i) * n;
    std::fill(row + lo, row + std::min(hi, lo + choice.sink), INFINITY);
    std::fill(row + std::max(lo, hi - choice.recent), row + hi, INFINITY);
    places.resize(static_cast<size_t>(wide));
    counts[i] = top_places(isa, row + lo, hi - lo, std::min(choice.most[t], hi - lo), places.data());
    const int32_t* table = choice.tables + static_cast<ptrdiff_t>(t) * choice.width;
    int64_t* to = at + static_cast<ptrdiff_t>(i) * wide;
    for (int j = 0; j < counts[i]; j++) {
      const int token = lo + places[static_cast<size_t>(j)];
      to[j] = static_cast<int64_t>(table[token / kPage]) * kPage + token % kPage;
    }
    std::fill(to + counts[i], to + wide, 0);
  }, static_cast<double>(choice.r) * kv_heads * n >= kAlone / 8);
}

}  // namespace

void choose(const Kernels& isa, Alone form, const Look& look, int head_dim, const Choice& choice, int wide, int64_t* at, int32_t* counts) {
  static thread_local std::vector<float> own, kept;
  const int heads = look.kv_heads * look.group, dim = look.dim;
  own.assign(static_cast<size_t>(choice.r) * heads * dim, 0.f);
  int n = 0;
  double work = 0;
  for (int i = 0; i < choice.r; i++) {
    n = std::max(n, choice.hi[i]);
    work += static_cast<double>(choice.hi[i] - choice.lo[i]) * heads * dim;
    for (int h = 0; h < heads; h++) {
      const float* q = look.q + choice.which[i] * look.q_stride + static_cast<ptrdiff_t>(h) * head_dim;
      const int32_t* channels = choice.channels + static_cast<ptrdiff_t>(h / look.group) * choice.count;
      float* to = own.data() + (static_cast<size_t>(i) * heads + static_cast<size_t>(h)) * dim;
      for (int c = 0; c < choice.count; c++) to[c] = q[channels[c]];
    }
  }
  const int splits = ceil_div(n, kSplit);
  kept.resize(static_cast<size_t>(choice.r) * look.kv_heads * n);
  float* const s = kept.data();
  Look by = look;
  by.q = own.data(), by.q_stride = static_cast<ptrdiff_t>(heads) * dim;
  by.lo = choice.lo, by.hi = choice.hi, by.row_step = 1, by.head_step = 0, by.table_step = 0;
  Pool& pool = Pool::get();
  pool.each(choice.r * splits, [&](int task) {
    const int t = task / splits;
    Look mine = by;
    mine.table = choice.tables + static_cast<ptrdiff_t>(t) * choice.width;
    (form == Alone::bf16 ? isa.score_best : isa.score_labels)(mine, t, task % splits, s + static_cast<size_t>(t) * look.kv_heads * n, n);
  }, work >= kAlone);
  take(isa, choice, look.kv_heads, s, n, wide, at, counts);
}

void choose_by_scores(const Kernels& isa, const Look& look, const Choice& choice, const float* lse, int wide, int64_t* at, int32_t* counts) {
  static thread_local std::vector<float> own, off, kept;
  const int heads = look.kv_heads * look.group;
  const size_t size = static_cast<size_t>(heads) * static_cast<size_t>(look.dim);
  own.resize(static_cast<size_t>(choice.r) * size);
  off.resize(static_cast<size_t>(choice.r * heads));
  std::vector<Span> each;
  int n = 0;
  for (int i = 0; i < choice.r; i++) {
    std::copy_n(look.q + choice.which[i] * look.q_stride, size, own.data() + static_cast<size_t>(i) * size);
    std::copy_n(lse + static_cast<ptrdiff_t>(choice.which[i]) * heads, heads, off.data() + i * heads);
    each.push_back({i, i + 1});
    n = std::max(n, choice.hi[i]);
  }
  kept.resize(static_cast<size_t>(choice.r) * look.kv_heads * n);
  Look by = look;
  by.q = own.data(), by.q_stride = static_cast<ptrdiff_t>(size);
  by.lo = choice.lo, by.hi = choice.hi, by.row_step = 1, by.head_step = 0, by.table_step = 0;
  scores(isa, by, each, choice.tables, choice.width, off.data(), kept.data(), look.kv_heads, n);
  take(isa, choice, look.kv_heads, kept.data(), n, wide, at, counts);
}

void attend_tokens(const Kernels& isa, const Look& look, const Chosen& chosen, float* out, float* lse) {
  const int heads = look.kv_heads * look.group, group = heads / chosen.sets;  // query heads of a set
  struct Task {
    int set, first, count;
    size_t at;
  };
  static thread_local std::vector<Task> tasks;
  static thread_local Scratch<Partial> kept;
  tasks.clear();
  double work = 0;
  for (int s = 0; s < chosen.r * chosen.sets; s++) {
    const int count = chosen.counts[s], part = part_of(count);
    for (int first = 0; first == 0 || first < count; first += part)
      tasks.push_back({s, first, std::min(count - first, part), tasks.size() * static_cast<size_t>(group)});
    work += static_cast<double>(count) * group * look.dim;
  }
  Partial* parts = kept.get(tasks.size() * static_cast<size_t>(group));
  const std::vector<Task>& all = tasks;  // the caller's, in every thread
  const auto set_of = [&](const Task& task) { return task.set % chosen.sets; };
  const auto tokens = [&](const Task& task) { return chosen.at + static_cast<ptrdiff_t>(task.set) * chosen.width + task.first; };
  const auto head = [&](const Task& task) { return set_of(task) * look.kv_heads / chosen.sets; };
  const auto walk = [&](const Task& task) {
    static thread_local Scratch<uint8_t> room;
    static const int32_t places[kSplit / kPage] = {0, 1, 2, 3, 4, 5, 6, 7};
    const int32_t lo = 0, hi = task.count;
    Look own = look;
    own.kv_heads = 1, own.group = group;
    own.q = look.q + chosen.which[task.set / chosen.sets] * look.q_stride + static_cast<ptrdiff_t>(set_of(task)) * group * look.dim;
    own.table = places, own.table_step = 0;
    own.lo = &lo, own.hi = &hi, own.row_step = 0, own.head_step = 0;
    own.kind = multiplied(look.kind), own.page_bytes = kv_page_bytes(own.kind, look.dim);
    uint8_t* copy = room.get(kSplit / kPage * own.page_bytes);
    isa.gather(look, head(task), tokens(task), hi, copy);
    own.pages = copy, own.near = true;
    isa.attend(own, 0, 0, 1, 0, parts + task.at);
  };
  // Some at a time: while one part is multiplied, the next one comes from wherever it is.
  const int n = static_cast<int>(all.size()), shares = std::min(n, 3 * Pool::get().threads());
  Pool::get().each(shares, [&](int share) {
    const int first = n * share / shares, last = n * (share + 1) / shares;
    for (int i = first; i < last; i++) {
      for (int next = i == first ? i : i + 1; next <= i + 1 && next < last; next++) {
        const Task& task = all[static_cast<size_t>(next)];
        isa.fetch(look, head(task), tokens(task), task.count);
      }
      walk(all[static_cast<size_t>(i)]);
    }
  }, work >= kAlone);
  for (size_t i = 0; i < all.size();) {  // the splits of a set, in order
    const int set = all[i].set;
    Partial* whole = parts + all[i].at;
    for (i++; i < all.size() && all[i].set == set; i++)
      for (int h = 0; h < group; h++) isa.merge(whole[h], parts[all[i].at + static_cast<size_t>(h)], look.dim);
    const int t = chosen.which[set / chosen.sets];
    for (int h = 0; h < group; h++) {
      const size_t row = static_cast<size_t>(t) * static_cast<size_t>(heads) + static_cast<size_t>(set % chosen.sets * group + h);
      const float inverse = whole[h].sum == 0.f ? 0.f : 1.f / whole[h].sum;
      for (int d = 0; d < look.dim; d++) out[row * static_cast<size_t>(look.dim) + static_cast<size_t>(d)] = whole[h].out[d] * inverse + 0.f;
      if (lse != nullptr) lse[row] = whole[h].sum == 0.f ? -INFINITY : whole[h].most + std::log(whole[h].sum);
    }
  }
}

void page_scores(const Kernels& isa, const Look& look, const uint16_t* index, int per, const std::vector<Span>& streams,
                 const int32_t* tables, int width, const int32_t* n, bool each, float* out) {
  const Owner owner(streams);
  constexpr int kPiece = 32;  // pages of one task
  const int rows = static_cast<int>(owner.stream.size()), pieces = ceil_div(width, kPiece), wide = each ? width * per : width;
  const double work = static_cast<double>(rows) * width * look.kv_heads * look.group * look.dim * per;
  Pool::get().each(rows * look.kv_heads * pieces, [&](int i) {
    static thread_local std::vector<float> query, found;
    const int piece = i % pieces, g = i / pieces % look.kv_heads, t = i / pieces / look.kv_heads, half = look.dim / 2;
    query.resize(static_cast<size_t>(look.group) * look.dim);
    found.resize(static_cast<size_t>(look.group) * per);
    for (int h = 0; h < look.group; h++) {
      const float* q = look.q + t * look.q_stride + static_cast<ptrdiff_t>(g * look.group + h) * look.dim;
      float* own = query.data() + static_cast<ptrdiff_t>(h) * look.dim;
      for (int c = 0; c < half; c++) own[c] = q[2 * c], own[half + c] = q[2 * c + 1];
    }
    float* to = out + (static_cast<size_t>(t) * look.kv_heads + static_cast<size_t>(g)) * wide;
    const int32_t* table = tables + static_cast<ptrdiff_t>(owner.stream[static_cast<size_t>(t)]) * width;
    for (int p = piece * kPiece; p < std::min(width, (piece + 1) * kPiece); p++) {
      if (p >= n[t]) {
        for (int j = 0; j < (each ? per : 1); j++) to[each ? p * per + j : p] = -INFINITY;
        continue;
      }
      const uint16_t* own = index + (static_cast<size_t>(table[p]) * look.kv_heads + static_cast<size_t>(g)) * per * look.dim;
      isa.dots(query.data(), look.group, look.dim, own, per, found.data());
      float best = -INFINITY;
      for (int j = 0; j < per; j++) {
        float most = -INFINITY;
        for (int h = 0; h < look.group; h++) most = std::max(most, found[static_cast<size_t>(h * per + j)]);
        best = std::max(best, most);
        if (each) to[p * per + j] = most;
      }
      if (!each) to[p] = best;
    }
  }, work >= kAlone);
}

}  // namespace diastole
