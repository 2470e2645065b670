#include "between.hpp"

#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "memory.hpp"
#include "picking.hpp"
#include "picking_check.hpp"

namespace diastole {
namespace {

using Caches = std::vector<Cache>;

// The caches of all layers, which stay the same, and where a batch's rows go.
class Stored : public Between {
 public:
  Stored(Caches caches, const std::string& fmt, int heads, int dim, float scale)
      : caches_(std::move(caches)), kind_(kv_kind(fmt)), dim_(dim), scale_(scale) {
    expect(!caches_.empty(), "there must be one cache per layer");
    for (const Cache& cache : caches_) {
      expect_cache(cache, kind_, static_cast<size_t>(dim));
      expect(cache.shape(0) == caches_[0].shape(0) && cache.shape(1) == caches_[0].shape(1), "a cache has the wrong shape");
    }
    kv_heads_ = static_cast<int>(caches_[0].shape(1));
    expect(kv_heads_ > 0 && heads > 0 && heads % kv_heads_ == 0 && heads / kv_heads_ <= kTile, "heads do not fit the key/value heads");
    group_ = heads / kv_heads_;
  }

  bool fits(size_t layers, size_t rows, int heads, int kv_heads, int dim) const override {
    return layers == caches_.size() && rows == rows_.size() && rows > 0 && heads == kv_heads_ * group_ && kv_heads == kv_heads_ && dim == dim_;
  }

 protected:
  void take(In<int64_t, 1> rows) {
    rows_ = {};
    expect_whole(rows, "rows");
    expect_rows_within(rows, pages());
    rows_ = std::move(rows);
  }
  size_t pages() const { return caches_[0].shape(0); }
  int heads() const { return kv_heads_ * group_; }
  int width() const { return (heads() + 2 * kv_heads_) * dim_; }
  const float* keys(const float* qkv) const { return qkv + heads() * dim_; }

  void store(const Kernels& isa, size_t layer, const float* qkv) const {
    const Pages to{caches_[layer].data(), kind_, kv_heads_, dim_, caches_[layer].shape(2)};
    kv_write(isa, to, rows_.data(), static_cast<int>(rows_.size()), keys(qkv), width(), keys(qkv) + kv_heads_ * dim_, width());
  }
  // Everything of it but what rows see.
  Look look(size_t layer, const float* qkv) const {
    return {qkv, width(), caches_[layer].data(), kind_, dim_, kv_heads_, group_, caches_[layer].shape(2), nullptr, 0, nullptr, nullptr, 1, 0, scale_, nullptr};
  }

  Caches caches_;
  KV kind_;
  int dim_, kv_heads_ = 0, group_ = 0;
  float scale_;
  In<int64_t, 1> rows_;
};

// Some rows of a batch attend to tokens that they choose, the others to everything.
class Picked : public Stored {
 public:
  using Stored::Stored;

  // The next batch: its rows, and which of them choose how many tokens.
  void batch(In<int64_t, 1> rows, In<int32_t, 2> tables, In<int32_t, 1> starts, In<int32_t, 1> lo, In<int32_t, 1> hi, In<int32_t, 1> which,
             In<int32_t, 2> own, In<int32_t, 1> from, In<int32_t, 1> to, In<int32_t, 1> most, int sink, int recent) {
    take({});
    const size_t kv_heads = static_cast<size_t>(kv_heads_);
    streams_ = open_batch(rows.size(), pages(), kv_heads, tables, starts, lo, hi);
    expect(sink >= 0 && recent >= 0, "sink and recent must not be negative");
    expect_choosers(which, own, from, to, most, rows.size(), pages());
    hi_.assign(hi.data(), hi.data() + hi.size());
    others_ = hi_;
    tables_ = std::move(tables), lo_ = std::move(lo), which_ = std::move(which), own_ = std::move(own);
    from_ = std::move(from), to_ = std::move(to), most_ = std::move(most);
    choice_ = {which_.data(), own_.data(), from_.data(), to_.data(), most_.data(), nullptr, static_cast<int>(which_.size()),
               static_cast<int>(own_.shape(1)), 0, sink, recent};
    wide_ = 0;
    for (int i = 0; i < choice_.r; i++) {
      wide_ = std::max(wide_, most_.data()[i]);
      others_[static_cast<size_t>(which_.data()[i])] = 0;  // these see nothing but what they choose
    }
    at_.resize(static_cast<size_t>(choice_.r) * kv_heads * static_cast<size_t>(wide_));
    counts_.resize(static_cast<size_t>(choice_.r) * kv_heads);
    take(std::move(rows));
  }

 protected:
  bool picks() const { return choice_.r > 0; }

  void attend_all(const Kernels& isa, const Look& look, float* seen, float* lse) const { attend_to(isa, look, hi_, seen, lse); }

  // Who has chosen attends to that, the others to everything.
  void attend_chosen(const Kernels& isa, const Look& look, float* seen) const {
    if (static_cast<size_t>(choice_.r) < rows_.size()) attend_to(isa, look, others_, seen, nullptr);
    attend_tokens(isa, look, {which_.data(), at_.data(), counts_.data(), choice_.r, kv_heads_, wide_}, seen, nullptr);
  }

  In<int32_t, 2> tables_, own_;
  In<int32_t, 1> lo_, which_, from_, to_, most_;
  std::vector<int32_t> hi_, others_, counts_;
  std::vector<int64_t> at_;
  Seen streams_;
  Choice choice_{};
  int wide_ = 0;

 private:
  void attend_to(const Kernels& isa, Look all, const std::vector<int32_t>& hi, float* seen, float* lse) const {
    all.lo = lo_.data(), all.hi = hi.data();
    attend(isa, all, streams_.streams, tables_.data(), streams_.stride, seen, lse);
  }
};

// Tokens chosen by labels, which the last layers have: see `choose` and `keys_write`.
class ByLabels final : public Picked {
 public:
  ByLabels(Caches caches, const std::string& fmt, int heads, int dim, float scale, Caches labels, std::vector<In<int32_t, 2>> channels, int bits)
      : Picked(std::move(caches), fmt, heads, dim, scale), form_(alone(bits)), labels_(std::move(labels)), channels_(std::move(channels)) {
    expect(labels_.size() <= caches_.size() && channels_.size() == labels_.size(), "labels and channels: there must be one for each of the last layers");
    const size_t kv_heads = static_cast<size_t>(kv_heads_);
    for (size_t i = 0; i < labels_.size(); i++) {
      const size_t size = expect_keys(labels_[i], form_);
      expect(labels_[i].shape(0) == pages() && labels_[i].shape(1) == kv_heads, "labels must be (pages, kv heads, bytes)");
      expect_channels(channels_[i], kv_heads, static_cast<size_t>(dim_), size);
      expect(channels_[i].shape(1) == channels_[0].shape(1) && labels_[i].shape(2) == labels_[0].shape(2), "labels: layers differ");
      label_dim_ = static_cast<int>(size);
    }
  }

  void mix(const Kernels& isa, size_t layer, const float* qkv, float* seen) override {
    store(isa, layer, qkv);
    const Look all = look(layer, qkv);
    const size_t dense = caches_.size() - labels_.size();
    if (layer < dense) return attend_all(isa, all, seen, nullptr);
    const Cache& labels = labels_[layer - dense];
    const In<int32_t, 2>& channels = channels_[layer - dense];
    const int count = static_cast<int>(channels.shape(1));
    const Pages to{labels.data(), KV::bf16, kv_heads_, label_dim_, labels.shape(2)};
    keys_write(isa, form_, to, rows_.data(), static_cast<int>(rows_.size()), keys(qkv), width(), dim_, channels.data(), count);
    if (!picks()) return attend_all(isa, all, seen, nullptr);
    Look by = all;
    by.pages = labels.data(), by.kind = KV::bf16, by.dim = label_dim_, by.page_bytes = labels.shape(2), by.scale = 1.f;
    Choice choice = choice_;
    choice.channels = channels.data(), choice.count = count;
    choose(isa, form_, by, dim_, choice, wide_, at_.data(), counts_.data());
    attend_chosen(isa, all, seen);
  }

 private:
  Alone form_;
  Caches labels_;
  std::vector<In<int32_t, 2>> channels_;
  int label_dim_ = 0;
};

// Tokens chosen in some layers by whole keys, for the layers that follow: see `choose_by_scores`.
class ByScores final : public Picked {
 public:
  // chooses (layers,): whether a layer attends to everything and chooses; those before the first attend to everything.
  ByScores(Caches caches, const std::string& fmt, int heads, int dim, float scale, std::vector<bool> chooses)
      : Picked(std::move(caches), fmt, heads, dim, scale), chooses_(std::move(chooses)) {
    expect(chooses_.size() == caches_.size(), "chooses: there must be one for each layer");
    first_ = static_cast<size_t>(std::find(chooses_.begin(), chooses_.end(), true) - chooses_.begin());
  }

  void mix(const Kernels& isa, size_t layer, const float* qkv, float* seen) override {
    store(isa, layer, qkv);
    const Look all = look(layer, qkv);
    if (picks() && layer > first_ && !chooses_[layer]) return attend_chosen(isa, all, seen);
    if (!picks() || !chooses_[layer]) return attend_all(isa, all, seen, nullptr);
    float* lse = lse_.get(rows_.size() * static_cast<size_t>(heads()));
    attend_all(isa, all, seen, lse);
    choose_by_scores(isa, all, choice_, lse, wide_, at_.data(), counts_.data());
  }

 private:
  std::vector<bool> chooses_;
  size_t first_;
  Scratch<float> lse_;
};

// Tokens that streams chose earlier, and those that came since; what rows ask is kept for their next choice.
class Remembered final : public Picked {
 public:
  using Picked::Picked;
  using Rings = std::vector<InOut<float, 4>>;    // (layers, places, heads, dim)
  using Choices = std::vector<In<int32_t, 3>>;  // (layers, kv heads, tokens): positions of a stream

  // Of the batch, for which `most` is how many tokens a row attends to in all: rows that ask, and the places of their rings
  // that this is kept at; and of those that chose, what and when: the tokens from `since` on are attended to also.
  void recall(In<int32_t, 1> asking, Rings rings, In<int32_t, 1> turns, Choices choices, In<int32_t, 1> since) {
    const size_t layers = caches_.size(), n = rings.size(), r = static_cast<size_t>(choice_.r), kv_heads = static_cast<size_t>(kv_heads_);
    rings_.clear();
    expect_whole(asking, "asking");
    expect_whole(turns, "turns");
    expect_whole(since, "since");
    expect(asking.size() == n && turns.size() == n, "asking and turns must have one entry for each of rings");
    for (size_t i = 0; i < n; i++) {
      const InOut<float, 4>& ring = rings[i];
      expect_whole(ring, "rings");
      expect(ring.shape(0) == layers && ring.shape(2) == static_cast<size_t>(heads()) && ring.shape(3) == static_cast<size_t>(dim_), "rings must be (layers, places, heads, dim)");
      expect(asking.data()[i] >= 0 && static_cast<size_t>(asking.data()[i]) < rows_.size(), "asking: a row is outside the batch");
      expect(turns.data()[i] >= 0 && static_cast<size_t>(turns.data()[i]) < ring.shape(1), "turns: a place is outside its ring");
    }
    expect(choices.size() == r && since.size() == r, "choices and since must have one entry for each of which");
    for (size_t i = 0; i < r; i++) {
      const In<int32_t, 3>& of = choices[i];
      expect_whole(of, "choices");
      expect(of.shape(0) == layers && of.shape(1) == kv_heads, "choices must be (layers, kv heads, tokens)");
      const int64_t later = to_.data()[i] - static_cast<int64_t>(since.data()[i]);
      expect(from_.data()[i] == 0 && since.data()[i] >= 0 && later >= 0, "since must be between 0 and hi");
      expect(most_.data()[i] == static_cast<int64_t>(of.shape(2)) + later && most_.data()[i] > 0, "most must be what was chosen and all since");
    }
    asking_ = std::move(asking), turns_ = std::move(turns), choices_ = std::move(choices), since_ = std::move(since), rings_ = std::move(rings);
  }

  void mix(const Kernels& isa, size_t layer, const float* qkv, float* seen) override {
    store(isa, layer, qkv);
    const size_t size = static_cast<size_t>(heads() * dim_), kv_heads = static_cast<size_t>(kv_heads_);
    for (size_t i = 0; i < rings_.size(); i++) {
      float* ring = rings_[i].data() + (layer * rings_[i].shape(1) + static_cast<size_t>(turns_.data()[i])) * size;
      std::memcpy(ring, qkv + asking_.data()[i] * static_cast<ptrdiff_t>(width()), size * sizeof(float));
    }
    const Look all = look(layer, qkv);
    if (!picks()) return attend_all(isa, all, seen, nullptr);
    for (size_t i = 0; i < choices_.size(); i++) {
      const size_t n = choices_[i].shape(2);
      const int32_t *table = own_.data() + i * own_.shape(1), *chosen = choices_[i].data() + layer * kv_heads * n;
      const int to = to_.data()[i];
      const auto row = [&](int token) { return static_cast<int64_t>(table[token / kPage]) * kPage + token % kPage; };
      for (size_t h = 0; h < kv_heads; h++) {
        int64_t* at = at_.data() + (i * kv_heads + h) * static_cast<size_t>(wide_);
        for (size_t j = 0; j < n; j++) *at++ = row(std::clamp(chosen[h * n + j], 0, to - 1));  // whatever is written there
        for (int token = since_.data()[i]; token < to; token++) *at++ = row(token);
        counts_[i * kv_heads + h] = most_.data()[i];
      }
    }
    attend_chosen(isa, all, seen);
  }

 private:
  In<int32_t, 1> asking_, turns_, since_;
  Rings rings_;
  Choices choices_;
};

// Pages of their own for every head, some of them chosen by bounds: see `attend` and `pick_pages`.
class ByPages final : public Stored {
 public:
  using Tables = std::vector<In<int32_t, 3>>;  // of each layer: (runs, kv heads, pages)
  using Asks = std::vector<In<int32_t, 1>>;    // (kv heads,): 0 where a head chooses nothing, else 1 + its place in bounds

  ByPages(Caches caches, const std::string& fmt, int heads, int dim, float scale, Caches bounds, int tokens, Asks asks)
      : Stored(std::move(caches), fmt, heads, dim, scale), bounds_(std::move(bounds)), tokens_(tokens), asks_(std::move(asks)), together_(true) {
    const size_t each = static_cast<size_t>(kv_heads_);
    for (size_t i = 0; i < caches_.size() * each; i++) add(i % each, each, pages(), 0);
    open_bounds();
  }
  // Where heads have pages of their own: caches (pages of all heads, 1, bytes); lanes of each layer (kv heads, 4): the first
  // of a head's pages, from there to its next, how many it has, and which of a batch's lists of rows is written to it.
  ByPages(Caches caches, const std::string& fmt, int heads, int dim, float scale, Caches bounds, int tokens, Asks asks,
          const std::vector<In<int64_t, 2>>& lanes)
      : Stored(std::move(caches), fmt, 1, dim, scale), bounds_(std::move(bounds)), tokens_(tokens), asks_(std::move(asks)), together_(false) {
    expect(kv_heads_ == 1 && lanes.size() == caches_.size(), "lanes: there must be one for each layer, whose pages have one head");
    const size_t each = lanes[0].shape(0);
    expect(each > 0 && heads > 0 && heads % each == 0 && heads / each <= kTile, "heads do not fit the lanes");
    kv_heads_ = static_cast<int>(each), group_ = heads / kv_heads_;
    for (size_t l = 0; l < lanes.size(); l++) {
      expect_whole(lanes[l], "lanes");
      expect(lanes[l].shape(0) == each && lanes[l].shape(1) == 4, "lanes must be (kv heads, 4)");
      const int64_t cells = static_cast<int64_t>(caches_[l].shape(0));
      for (size_t g = 0; g < each; g++) {
        const int64_t *lane = lanes[l].data() + 4 * g, first = lane[0], step = lane[1], count = lane[2];
        expect(first >= 0 && step > 0 && count > 0 && first < cells && count - 1 <= (cells - 1 - first) / step, "lanes: one reaches beyond the pages");
        expect(lane[3] == 0 || lane[3] == 1, "lanes: there are two lists of rows");
        add(static_cast<size_t>(first), static_cast<size_t>(step), static_cast<size_t>(count), static_cast<size_t>(lane[3]));
      }
    }
    open_bounds();
  }

  // The next batch: its rows, in one or two lists, what they look at in each layer, and which of them complete a run of tokens.
  void batch(In<int64_t, 2> rows, Tables tables, In<int32_t, 1> starts, In<int32_t, 2> lo, std::vector<In<int32_t, 2>> hi, In<int64_t, 1> closed) {
    count_ = 0;
    places_.clear();
    const size_t layers = caches_.size(), count = rows.shape(1);
    expect(tables.size() == layers && hi.size() == layers, "tables and hi: there must be one for each layer");
    expect_whole(rows, "rows");
    expect(rows.shape(0) == (together_ ? 1u : 2u), "rows must be one list, or two where heads have pages of their own");
    seen_.clear();
    for (size_t l = 0; l < layers; l++) {
      expect(tables[l].ndim() == 3 && hi[l].ndim() == 2, "heads must look at pages of their own");
      std::vector<size_t> most(static_cast<size_t>(kv_heads_));
      for (int g = 0; g < kv_heads_; g++) {
        const size_t limit = most[static_cast<size_t>(g)] = limits_[at(l, g)];
        const int64_t* own = rows.data() + lists_[at(l, g)] * count;
        for (size_t i = 0; i < count; i++) expect(own[i] >= 0 && static_cast<size_t>(own[i] / kPage) < limit, "rows: one is outside the pages");
      }
      seen_.push_back(open_batch(count, most, tables[l], starts, lo, hi[l]));
    }
    expect_whole(closed, "closed");
    expect_rows_within(closed, bounds_[0].shape(0));
    for (size_t i = 0; i < closed.size(); i++) expect(closed.data()[i] % tokens_ == tokens_ - 1, "closed: a row is not the last of its run");
    tables_ = std::move(tables), lo_ = std::move(lo), hi_ = std::move(hi), closed_ = std::move(closed);
    lists_of_ = std::move(rows), count_ = count;
  }

  bool fits(size_t layers, size_t rows, int heads, int kv_heads, int dim) const override {
    return layers == caches_.size() && rows == count_ && rows > 0 && heads == kv_heads_ * group_ && kv_heads == kv_heads_ && dim == dim_;
  }

  // Rows of this batch that choose anew, and the tables that are written to then.
  void due(In<int32_t, 1> which, In<int32_t, 1> runs, In<int32_t, 2> tables, In<int32_t, 1> blocks, int first, int recent,
           std::vector<InOut<int32_t, 3>> places, std::vector<InOut<int32_t, 3>> to) {
    const size_t layers = caches_.size();
    expect(places.size() == layers && to.size() == layers, "places and to: there must be one for each layer");
    for (size_t l = 0; l < layers; l++) expect(to[l].data() == tables_[l].data(), "to: these are not the tables");
    expect_whole(which, "which");
    const size_t r = which.size();
    for (size_t i = 0; i < r; i++) expect(which.data()[i] >= 0 && which.data()[i] < static_cast<int64_t>(count_), "which: a row is outside the batch");
    for (size_t l = 0; l < layers; l++)
      expect_bounded(r, static_cast<size_t>(kv_heads_), bounds_[l], tables, blocks, asks_[l], first, recent, places[l], runs, to[l]);
    which_ = std::move(which), runs_ = std::move(runs), own_ = std::move(tables), blocks_ = std::move(blocks);
    places_ = std::move(places), to_ = std::move(to);
    first_ = first, recent_ = recent;
  }

  void mix(const Kernels& isa, size_t layer, const float* qkv, float* seen) override {
    write(isa, layer, qkv);
    for (size_t i = 0; i < closed_.size(); i++) close(isa, layer, closed_.data()[i]);
    if (!places_.empty()) pick(isa, layer, qkv);
    Look own = look(layer, qkv);
    own.lanes = lanes_.data() + at(layer, 0);
    own.lo = lo_.data(), own.hi = hi_[layer].data();
    own.table_step = seen_[layer].table_step, own.row_step = seen_[layer].row_step, own.head_step = seen_[layer].head_step;
    attend(isa, own, seen_[layer].streams, tables_[layer].data(), seen_[layer].stride, seen, nullptr);
  }

 private:
  size_t per() const { return static_cast<size_t>(kPage / tokens_); }
  size_t at(size_t layer, int g) const { return layer * static_cast<size_t>(kv_heads_) + static_cast<size_t>(g); }
  uint8_t* page(size_t layer, size_t id, int g) { return caches_[layer].data() + lanes_[at(layer, g)].cell(id) * caches_[layer].shape(2); }
  void add(size_t first, size_t step, size_t count, size_t list) {
    lanes_.push_back({first, step});
    limits_.push_back(count);
    lists_.push_back(list);
  }

  void open_bounds() {
    expect(bounds_.size() == caches_.size() && asks_.size() == caches_.size(), "bounds and asks: there must be one for each layer");
    expect(tokens_ > 0 && kPage % tokens_ == 0 && tokens_ >= 4, "tokens must divide a page, and be 4 or more");
    for (size_t l = 0; l < bounds_.size(); l++) {
      const Cache& own = bounds_[l];
      expect_whole(own, "bounds");
      expect_whole(asks_[l], "asks");
      expect(own.shape(0) == bounds_[0].shape(0) && own.shape(2) == 4 * static_cast<size_t>(dim_) * per(), "bounds must be (pages, heads that choose, 4 dim per page's runs)");
      expect(reinterpret_cast<uintptr_t>(own.data()) % 2 == 0, "bounds must be aligned to 2 bytes");
      expect(asks_[l].size() == static_cast<size_t>(kv_heads_), "asks must have one entry per key/value head");
      for (int g = 0; g < kv_heads_; g++) {
        const int32_t ask = asks_[l].data()[g];
        expect(ask >= 0 && ask <= static_cast<int64_t>(own.shape(1)), "asks: a head has no place in the bounds");
        expect(ask == 0 || limits_[at(l, g)] >= own.shape(0), "bounds: there are more than a head that chooses has pages");
      }
    }
  }

  void write(const Kernels& isa, size_t layer, const float* qkv) {
    if (together_) {
      const Pages to{caches_[layer].data(), kind_, kv_heads_, dim_, caches_[layer].shape(2)};
      return kv_write(isa, to, lists_of_.data(), static_cast<int>(count_), keys(qkv), width(), keys(qkv) + kv_heads_ * dim_, width());
    }
    const Pages to{caches_[layer].data(), kind_, 1, dim_, caches_[layer].shape(2)};
    cells_.resize(count_);
    for (int g = 0; g < kv_heads_; g++) {
      const int64_t* rows = lists_of_.data() + lists_[at(layer, g)] * count_;
      const Lane& lane = lanes_[at(layer, g)];
      for (size_t i = 0; i < count_; i++)
        cells_[i] = static_cast<int64_t>(lane.cell(static_cast<size_t>(rows[i] / kPage))) * kPage + rows[i] % kPage;
      const float* k = keys(qkv) + g * dim_;
      kv_write(isa, to, cells_.data(), static_cast<int>(count_), k, width(), k + kv_heads_ * dim_, width());
    }
  }

  // The largest and the smallest key by channel of the run that ends with a row.
  void close(const Kernels& isa, size_t layer, int64_t last) {
    const size_t id = static_cast<size_t>(last / kPage), lanes = 32 / per();
    const Cache& kept = bounds_[layer];
    const int end = static_cast<int>(last % kPage) + 1;
    alignas(64) float k[kMaxDim], v[kMaxDim], both[2 * kMaxDim];
    for (int h = 0; h < kv_heads_; h++) {
      const int32_t ask = asks_[layer].data()[h];
      if (ask == 0) continue;
      for (int slot = end - tokens_; slot < end; slot++) {
        isa.kv_read(kind_, page(layer, id, h), slot, dim_, k, v);
        for (int c = 0; c < dim_; c++) {
          const bool begins = slot == end - tokens_;
          both[c] = begins ? k[c] : std::max(both[c], k[c]);
          both[dim_ + c] = begins ? k[c] : std::min(both[dim_ + c], k[c]);
        }
      }
      uint16_t* to = reinterpret_cast<uint16_t*>(kept.data() + (id * kept.shape(1) + static_cast<size_t>(ask) - 1) * kept.shape(2)) + static_cast<size_t>((end - 1) / tokens_) * lanes;
      for (size_t c = 0; c < 2 * static_cast<size_t>(dim_); c += lanes, to += 32)
        for (size_t j = 0; j < lanes; j++) {
          uint32_t bits;
          std::memcpy(&bits, both + c + j, 4);
          to[j] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        }
    }
  }

  void pick(const Kernels& isa, size_t layer, const float* qkv) {
    const In<int32_t, 1>& asks = asks_[layer];
    if (std::all_of(asks.data(), asks.data() + asks.size(), [](int32_t a) { return a == 0; })) return;
    const size_t r = which_.size(), size = static_cast<size_t>(heads() * dim_);
    float* q = queries_.get(r * size);
    for (size_t i = 0; i < r; i++) std::memcpy(q + i * size, qkv + which_.data()[i] * static_cast<ptrdiff_t>(width()), size * sizeof(float));
    Look by = look(layer, q);
    by.q_stride = static_cast<ptrdiff_t>(size);
    const Bounded bounded{own_.data(), blocks_.data(), asks.data(), runs_.data(), static_cast<int>(r), static_cast<int>(own_.shape(1)),
                          static_cast<int>(places_[layer].shape(2)), first_, recent_, static_cast<int>(bounds_[layer].shape(1))};
    pick_pages(isa, by, reinterpret_cast<const uint16_t*>(bounds_[layer].data()), static_cast<int>(per()), bounded, places_[layer].data(),
               to_[layer].data(), static_cast<ptrdiff_t>(to_[layer].shape(2)));
  }

  Caches bounds_;
  int tokens_;
  Asks asks_;
  const bool together_;  // a page's heads lie side by side, and there is one list of rows
  // layer by layer, of all heads
  std::vector<Lane> lanes_;
  std::vector<size_t> lists_, limits_;
  // of a batch
  In<int64_t, 2> lists_of_;
  size_t count_ = 0;
  std::vector<int64_t> cells_;
  Tables tables_;
  In<int32_t, 2> lo_;
  std::vector<In<int32_t, 2>> hi_;
  std::vector<Seen> seen_;
  In<int64_t, 1> closed_;
  In<int32_t, 1> which_, runs_, blocks_;
  In<int32_t, 2> own_;
  std::vector<InOut<int32_t, 3>> places_, to_;
  int first_ = 0, recent_ = 0;
  Scratch<float> queries_;
};

}  // namespace

void bind_between(nb::module_& m) {
  nb::class_<Between>(m, "Between")
      .def("mix", [](Between& self, size_t layers, size_t layer, In<float, 3> qkv, InOut<float, 3> seen) {
        expect_whole(qkv, "qkv");
        expect_whole(seen, "seen");
        const int heads = static_cast<int>(seen.shape(1)), dim = static_cast<int>(seen.shape(2)), all = static_cast<int>(qkv.shape(1));
        expect(layer < layers && seen.shape(0) == qkv.shape(0) && qkv.shape(2) == seen.shape(2) && all > heads && (all - heads) % 2 == 0 &&
                   self.fits(layers, qkv.shape(0), heads, (all - heads) / 2, dim),
               "qkv must be (rows, heads + 2 kv heads, dim) and seen (rows, heads, dim), of the batch and model that this was made for");
        const Unlocked unlocked;
        self.mix(isa(), layer, qkv.data(), seen.data());
      });
  nb::class_<ByLabels, Between>(m, "ByLabels")
      .def(nb::init<Caches, const std::string&, int, int, float, Caches, std::vector<In<int32_t, 2>>, int>())
      .def("batch", &ByLabels::batch);
  nb::class_<ByScores, Between>(m, "ByScores")
      .def(nb::init<Caches, const std::string&, int, int, float, std::vector<bool>>())
      .def("batch", &ByScores::batch);
  nb::class_<Remembered, Between>(m, "Remembered")
      .def(nb::init<Caches, const std::string&, int, int, float>())
      .def("batch", &Remembered::batch)
      .def("recall", &Remembered::recall);
  nb::class_<ByPages, Between>(m, "ByPages")
      .def(nb::init<Caches, const std::string&, int, int, float, Caches, int, ByPages::Asks>())
      .def(nb::init<Caches, const std::string&, int, int, float, Caches, int, ByPages::Asks, const std::vector<In<int64_t, 2>>&>())
      .def("batch", &ByPages::batch)
      .def("due", &ByPages::due);
}

}  // namespace diastole
