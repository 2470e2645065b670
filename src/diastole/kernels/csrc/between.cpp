#include "between.hpp"

#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>

#include "memory.hpp"
#include "picking.hpp"
#include "picking_check.hpp"

namespace diastole {
namespace {

using Caches = std::vector<Cache>;

// The caches of all layers and where this batch's rows go.
class Stored : public Between {
 public:
  Stored(Caches caches, const std::string& fmt, int heads, int dim, In<int64_t, 1> rows, float scale)
      : caches_(std::move(caches)), kind_(kv_kind(fmt)), dim_(dim), rows_(std::move(rows)), scale_(scale) {
    expect(!caches_.empty(), "there must be one cache per layer");
    for (const Cache& cache : caches_) {
      expect_cache(cache, kind_, static_cast<size_t>(dim));
      expect(cache.shape(0) == caches_[0].shape(0) && cache.shape(1) == caches_[0].shape(1), "a cache has the wrong shape");
    }
    kv_heads_ = static_cast<int>(caches_[0].shape(1));
    expect(kv_heads_ > 0 && heads > 0 && heads % kv_heads_ == 0 && heads / kv_heads_ <= kTile, "heads do not fit the key/value heads");
    group_ = heads / kv_heads_;
    expect_whole(rows_, "rows");
    expect_rows_within(rows_, pages());
  }

  bool fits(size_t layers, size_t rows, int heads, int kv_heads, int dim) const override {
    return layers == caches_.size() && rows == rows_.size() && heads == kv_heads_ * group_ && kv_heads == kv_heads_ && dim == dim_;
  }

 protected:
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
  In<int64_t, 1> rows_;
  float scale_;
};

// Tokens chosen by labels, from layer `dense` on: see `choose` and `keys_write`.
class ByLabels final : public Stored {
 public:
  ByLabels(Caches caches, const std::string& fmt, int heads, int dim, In<int64_t, 1> rows, float scale, In<int32_t, 2> tables,
           In<int32_t, 1> starts, In<int32_t, 1> lo, In<int32_t, 1> hi, Caches labels, std::vector<In<int32_t, 2>> channels, In<int32_t, 1> which,
           In<int32_t, 2> own, In<int32_t, 1> from, In<int32_t, 1> to, In<int32_t, 1> most, int sink, int recent, int bits)
      : Stored(std::move(caches), fmt, heads, dim, std::move(rows), scale), tables_(std::move(tables)), lo_(std::move(lo)),
        labels_(std::move(labels)), channels_(std::move(channels)), which_(std::move(which)), own_(std::move(own)),
        from_(std::move(from)), to_(std::move(to)), most_(std::move(most)), form_(alone(bits)) {
    expect(labels_.size() <= caches_.size() && channels_.size() == labels_.size(), "labels and channels: there must be one for each of the last layers");
    const size_t kv_heads = static_cast<size_t>(kv_heads_);
    expect_whole(tables_, "tables");
    expect_whole(starts, "starts");
    expect_whole(lo_, "lo");
    expect_whole(hi, "hi");
    streams_ = open_batch(rows_.size(), pages(), kv_heads, tables_, starts, lo_, hi);
    hi_.assign(hi.data(), hi.data() + hi.size());
    for (size_t i = 0; i < labels_.size(); i++) {
      const size_t size = expect_keys(labels_[i], form_);
      expect(labels_[i].shape(0) == pages() && labels_[i].shape(1) == kv_heads, "labels must be (pages, kv heads, bytes)");
      expect_channels(channels_[i], kv_heads, static_cast<size_t>(dim_), size);
      expect(channels_[i].shape(1) == channels_[0].shape(1) && labels_[i].shape(2) == labels_[0].shape(2), "labels: layers differ");
      label_dim_ = static_cast<int>(size);
    }
    expect(sink >= 0 && recent >= 0, "sink and recent must not be negative");
    expect_choosers(which_, own_, from_, to_, most_, rows_.size(), pages());
    choice_ = {which_.data(), own_.data(), from_.data(), to_.data(), most_.data(), nullptr, static_cast<int>(which_.size()),
               static_cast<int>(own_.shape(1)), labels_.empty() ? 0 : static_cast<int>(channels_[0].shape(1)), sink, recent};
    for (int i = 0; i < choice_.r; i++) wide_ = std::max(wide_, most_.data()[i]);
    at_.resize(static_cast<size_t>(choice_.r) * kv_heads * static_cast<size_t>(wide_));
    counts_.resize(static_cast<size_t>(choice_.r) * kv_heads);
    others_ = hi_;
    for (int i = 0; i < choice_.r; i++) others_[static_cast<size_t>(which_.data()[i])] = 0;  // these see nothing but what they choose
  }

  void mix(const Kernels& isa, size_t layer, const float* qkv, float* seen) override {
    store(isa, layer, qkv);
    const size_t dense = caches_.size() - labels_.size();
    const bool labelled = layer >= dense, chooses = labelled && choice_.r > 0;
    Look all = look(layer, qkv);
    if (labelled) write_labels(isa, layer - dense, qkv);
    if (!chooses || static_cast<size_t>(choice_.r) < rows_.size()) {
      all.lo = lo_.data(), all.hi = (chooses ? others_ : hi_).data();
      attend(isa, all, streams_.streams, tables_.data(), streams_.stride, seen, nullptr);
    }
    if (!chooses) return;
    const Cache& labels = labels_[layer - dense];
    Look by = look(layer, qkv);
    by.pages = labels.data(), by.kind = KV::bf16, by.dim = label_dim_;
    by.page_bytes = labels.shape(2), by.scale = 1.f;
    Choice choice = choice_;
    choice.channels = channels_[layer - dense].data();
    choose(isa, form_, by, dim_, choice, wide_, at_.data(), counts_.data());
    attend_tokens(isa, look(layer, qkv), {which_.data(), at_.data(), counts_.data(), choice_.r, kv_heads_, wide_}, seen, nullptr);
  }

 private:
  void write_labels(const Kernels& isa, size_t i, const float* qkv) const {
    const In<int32_t, 2>& channels = channels_[i];
    const Pages to{labels_[i].data(), KV::bf16, kv_heads_, label_dim_, labels_[i].shape(2)};
    keys_write(isa, form_, to, rows_.data(), static_cast<int>(rows_.size()), keys(qkv), width(), dim_, channels.data(), static_cast<int>(channels.shape(1)));
  }

  In<int32_t, 2> tables_;
  In<int32_t, 1> lo_;
  std::vector<int32_t> hi_, others_, counts_;
  std::vector<int64_t> at_;
  Seen streams_;
  Caches labels_;
  std::vector<In<int32_t, 2>> channels_;
  In<int32_t, 1> which_;
  In<int32_t, 2> own_;
  In<int32_t, 1> from_, to_, most_;
  Choice choice_{};
  Alone form_;
  int wide_ = 0, label_dim_ = 0;
};

// Pages of their own for every head, some of them chosen by bounds: see `attend` and `pick_pages`.
class ByPages final : public Stored {
 public:
  using Tables = std::vector<In<int32_t, 3>>;  // of each layer: (runs, kv heads, pages)

  ByPages(Caches caches, const std::string& fmt, int heads, int dim, In<int64_t, 1> rows, float scale, Tables tables,
          In<int32_t, 1> starts, In<int32_t, 2> lo, std::vector<In<int32_t, 2>> hi, Caches bounds, int tokens, In<int64_t, 1> closed)
      : Stored(std::move(caches), fmt, heads, dim, std::move(rows), scale), tables_(std::move(tables)), lo_(std::move(lo)), hi_(std::move(hi)),
        bounds_(std::move(bounds)), tokens_(tokens), closed_(std::move(closed)) {
    const size_t layers = caches_.size(), kv_heads = static_cast<size_t>(kv_heads_);
    expect(tables_.size() == layers && hi_.size() == layers && bounds_.size() == layers, "tables, hi and bounds: there must be one for each layer");
    expect(tokens > 0 && kPage % tokens == 0 && tokens >= 4, "tokens must divide a page, and be 4 or more");
    for (size_t l = 0; l < layers; l++) {
      seen_.push_back(open_batch(rows_.size(), pages(), kv_heads, tables_[l], starts, lo_, hi_[l]));
      expect_whole(bounds_[l], "bounds");
      expect(bounds_[l].shape(0) == pages() && bounds_[l].shape(1) == kv_heads && bounds_[l].shape(2) == 4 * static_cast<size_t>(dim_) * per(),
             "bounds must be (pages, kv heads, 4 dim per page's runs)");
      expect(reinterpret_cast<uintptr_t>(bounds_[l].data()) % 2 == 0, "bounds must be aligned to 2 bytes");
    }
    expect_whole(closed_, "closed");
    expect_rows_within(closed_, pages());
    for (size_t i = 0; i < closed_.size(); i++) expect(closed_.data()[i] % tokens == tokens - 1, "closed: a row is not the last of its run");
  }

  // Rows of this batch that choose anew, and the tables that are written to then.
  void due(In<int32_t, 1> which, In<int32_t, 1> runs, In<int32_t, 2> tables, In<int32_t, 1> blocks, std::vector<In<int32_t, 1>> asks,
           int first, int recent, std::vector<InOut<int32_t, 3>> places, std::vector<InOut<int32_t, 3>> to) {
    const size_t layers = caches_.size();
    expect(asks.size() == layers && places.size() == layers && to.size() == layers, "asks, places and to: there must be one for each layer");
    for (size_t l = 0; l < layers; l++) expect(to[l].data() == tables_[l].data(), "to: these are not the tables");
    expect_whole(which, "which");
    const size_t r = which.size();
    for (size_t i = 0; i < r; i++) expect(which.data()[i] >= 0 && which.data()[i] < static_cast<int64_t>(rows_.size()), "which: a row is outside the batch");
    for (size_t l = 0; l < caches_.size(); l++)
      expect_bounded(r, static_cast<size_t>(kv_heads_), pages(), tables, blocks, asks[l], first, recent, places[l], runs, to[l]);
    which_ = std::move(which), runs_ = std::move(runs), own_ = std::move(tables), blocks_ = std::move(blocks);
    asks_ = std::move(asks), places_ = std::move(places), to_ = std::move(to);
    first_ = first, recent_ = recent;
  }

  void mix(const Kernels& isa, size_t layer, const float* qkv, float* seen) override {
    store(isa, layer, qkv);
    for (size_t i = 0; i < closed_.size(); i++) close(isa, layer, closed_.data()[i]);
    if (!places_.empty()) pick(isa, layer, qkv);
    Look own = look(layer, qkv);
    own.lo = lo_.data(), own.hi = hi_[layer].data();
    own.table_step = seen_[layer].table_step, own.row_step = seen_[layer].row_step, own.head_step = seen_[layer].head_step;
    attend(isa, own, seen_[layer].streams, tables_[layer].data(), seen_[layer].stride, seen, nullptr);
  }

 private:
  size_t per() const { return static_cast<size_t>(kPage / tokens_); }

  // The largest and the smallest key by channel of the run that ends with a row.
  void close(const Kernels& isa, size_t layer, int64_t last) const {
    const Cache& cache = caches_[layer];
    const size_t page = static_cast<size_t>(last / kPage), lanes = 32 / per();
    const int end = static_cast<int>(last % kPage) + 1;
    alignas(64) float k[kMaxDim], v[kMaxDim], both[2 * kMaxDim];
    for (int h = 0; h < kv_heads_; h++) {
      const size_t at = page * static_cast<size_t>(kv_heads_) + static_cast<size_t>(h);
      for (int slot = end - tokens_; slot < end; slot++) {
        isa.kv_read(kind_, cache.data() + at * cache.shape(2), slot, dim_, k, v);
        for (int c = 0; c < dim_; c++) {
          const bool begins = slot == end - tokens_;
          both[c] = begins ? k[c] : std::max(both[c], k[c]);
          both[dim_ + c] = begins ? k[c] : std::min(both[dim_ + c], k[c]);
        }
      }
      uint16_t* to = reinterpret_cast<uint16_t*>(bounds_[layer].data() + at * bounds_[layer].shape(2)) + static_cast<size_t>((end - 1) / tokens_) * lanes;
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
                          static_cast<int>(places_[layer].shape(2)), first_, recent_};
    pick_pages(isa, by, reinterpret_cast<const uint16_t*>(bounds_[layer].data()), static_cast<int>(per()), bounded, places_[layer].data(),
               to_[layer].data(), static_cast<ptrdiff_t>(to_[layer].shape(2)));
  }

  Tables tables_;
  In<int32_t, 2> lo_;
  std::vector<In<int32_t, 2>> hi_;
  std::vector<Seen> seen_;
  Caches bounds_;
  int tokens_;
  In<int64_t, 1> closed_;
  In<int32_t, 1> which_, runs_, blocks_;
  In<int32_t, 2> own_;
  std::vector<In<int32_t, 1>> asks_;
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
      .def(nb::init<Caches, const std::string&, int, int, In<int64_t, 1>, float, In<int32_t, 2>, In<int32_t, 1>, In<int32_t, 1>, In<int32_t, 1>,
                    Caches, std::vector<In<int32_t, 2>>, In<int32_t, 1>, In<int32_t, 2>, In<int32_t, 1>, In<int32_t, 1>, In<int32_t, 1>, int, int, int>());
  nb::class_<ByPages, Between>(m, "ByPages")
      .def(nb::init<Caches, const std::string&, int, int, In<int64_t, 1>, float, ByPages::Tables, In<int32_t, 1>, In<int32_t, 2>,
                    std::vector<In<int32_t, 2>>, Caches, int, In<int64_t, 1>>())
      .def("due", &ByPages::due);
}

}  // namespace diastole
