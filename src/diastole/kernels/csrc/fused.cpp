// A decoder's whole step in one call: the operators that Python otherwise calls one by one, without coming back between.
#include <chrono>
#include <cmath>
#include <tuple>

#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "ahead.hpp"
#include "between.hpp"
#include "products.hpp"

namespace diastole {
namespace {

using Part = std::tuple<std::string, int, int, Bytes>;  // format, n, k, data
using Vector = In<float, 1>;
using Maybe = std::optional<Vector>;

// A matrix in one or several parts, stacked along its rows.
struct Stack {
  std::vector<Matrix> parts;
  const float* bias = nullptr;
  int n = 0;

  Stack(const std::vector<Part>& from, const Maybe& with_bias) {
    for (const auto& [kind, rows, k, data] : from) {
      parts.push_back(matrix(kind, rows, k, data));
      n += rows;
    }
    expect(!parts.empty(), "a matrix needs at least one part");
    for (const Matrix& part : parts) expect(part.k == parts[0].k, "the parts of a matrix must have the same k");
    if (with_bias) {
      expect_whole(*with_bias, "bias");
      expect(static_cast<int>(with_bias->size()) == n, "bias must be (n,)");
      bias = with_bias->data();
    }
  }

  int k() const { return parts[0].k; }

  // prepare(kind): the rows in the form for a kind; asked again only where neighbours want different ones.
  template <class Prepare>
  void times(const Kernels& isa, const Prepare& prepare, float* out, bool add) const {
    int first = 0;
    Rows rows;
    for (size_t i = 0; i < parts.size(); i++) {
      const Matrix& part = parts[i];
      if (i == 0 || form_of(part.kind) != form_of(parts[i - 1].kind)) rows = prepare(part.kind);
      multiply(isa, part, rows, {out + first, n, bias ? bias + first : nullptr, add});
      first += part.n;
    }
  }

  // Rows first..first+count, if they are whole blocks of one part.
  std::optional<Half> half(int first, int count) const {
    for (const Matrix& part : parts) {
      if (first < part.n) {
        if (first % kRows || count % kRows || first + count > part.n) break;
        return Half{part, first};
      }
      first -= part.n;
    }
    return std::nullopt;
  }
};

const float* vector(const Vector& v, int size, const char* name) {
  expect_whole(v, name);
  if (static_cast<int>(v.size()) != size) fail(std::string(name) + " has the wrong size");
  return v.data();
}
const float* vector(const Maybe& v, int size, const char* name) { return v ? vector(*v, size, name) : nullptr; }

// Where the time of a step goes. Reading the clock some hundred times costs a step about 10 us.
class Stopwatch {
 public:
  enum Phase { embed, norm, qkv, rope, store, attend, o, gate_up, gated, down, head, phases };
  static constexpr const char* names[phases] = {"embed", "norm", "qkv", "rope", "store", "attend", "o", "gate_up", "gated", "down", "head"};

  void start() { last_ = Clock::now(); }
  void lap(Phase phase) {
    const auto now = Clock::now();
    seconds_[phase] += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }
  double seconds(int phase) const { return seconds_[phase]; }
  void clear() { std::fill(seconds_, seconds_ + phases, 0.0); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_;
  double seconds_[phases] = {};
};

struct Layer {
  const float *attn_norm, *mlp_norm, *attn_post, *mlp_post, *q_norm, *k_norm;
  Stack qkv, o, gate_up, down;
  const float* rope;
  int positions, rotated, window;
  float scale, eps;
};

class Fused {
 public:
  Fused(int hidden, int heads, int kv_heads, int dim, bool gelu, float embed_scale, Part embed, std::vector<Part> head,
        Vector norm, float eps)
      : hidden_(hidden), heads_(heads), kv_heads_(kv_heads), dim_(dim), gelu_(gelu), embed_scale_(embed_scale), eps_(eps),
        embed_(matrix(std::get<0>(embed), std::get<1>(embed), std::get<2>(embed), std::get<3>(embed))),
        head_(head, std::nullopt), norm_(vector(norm, hidden, "norm")) {
    expect(embed_.k == hidden && head_.k() == hidden, "embedding and head must be as wide as the model");
    expect(kv_heads > 0 && heads % kv_heads == 0 && heads / kv_heads <= kTile, "heads do not fit the key/value heads");
  }

  void add(std::vector<Part> qkv, Maybe qkv_bias, std::vector<Part> o, Maybe o_bias, std::vector<Part> gate_up,
           std::vector<Part> down, Vector attn_norm, Vector mlp_norm, Maybe attn_post, Maybe mlp_post, Maybe q_norm,
           Maybe k_norm, In<float, 2> rope, int window, float scale, float eps) {
    expect_whole(rope, "rope");
    Layer layer{vector(attn_norm, hidden_, "attn_norm"), vector(mlp_norm, hidden_, "mlp_norm"),
                vector(attn_post, hidden_, "attn_post"), vector(mlp_post, hidden_, "mlp_post"),
                vector(q_norm, dim_, "q_norm"), vector(k_norm, dim_, "k_norm"),
                Stack(qkv, qkv_bias), Stack(o, o_bias), Stack(gate_up, std::nullopt), Stack(down, std::nullopt),
                rope.data(), static_cast<int>(rope.shape(0)), static_cast<int>(rope.shape(1)), window, scale, eps};
    expect(layer.qkv.n == (heads_ + 2 * kv_heads_) * dim_ && layer.qkv.k() == hidden_, "qkv has the wrong shape");
    expect(layer.o.n == hidden_ && layer.o.k() == heads_ * dim_, "o has the wrong shape");
    expect(layer.gate_up.n % 2 == 0 && layer.gate_up.k() == hidden_, "gate_up has the wrong shape");
    expect(layer.down.n == hidden_ && layer.down.k() == layer.gate_up.n / 2, "down has the wrong shape");
    expect(layer.rotated % 2 == 0 && layer.rotated <= dim_, "rope has the wrong shape");
    layers_.push_back(layer);
  }

  void step(std::vector<Cache> caches, const std::string& fmt, In<int32_t, 1> ids, In<int32_t, 1> pos,
            In<int64_t, 1> rows, In<int64_t, 2> also, In<int32_t, -1> tables, In<int32_t, 1> starts, In<int32_t, -1> lo,
            In<int32_t, -1> hi, In<int32_t, 1> want, InOut<float, 2> logits) {
    const Paged paged = open_pages(caches, fmt, ids.size(), rows, also, tables, starts, lo, hi);
    expect_step(ids, pos, want, logits);
    const Unlocked unlocked;
    const int t = static_cast<int>(ids.size()), width = (heads_ + 2 * kv_heads_) * dim_, inside = heads_ * dim_;
    float *qkv = qkv_.get(static_cast<size_t>(t) * width), *seen = seen_.get(static_cast<size_t>(t) * inside);
    ahead_.open(paged.streams, paged.tables, paged.stride, paged.hi);
    const auto mix = [&](size_t l, const float* from, float* to) { look_back(paged, l, t, pos.data(), from, to); };
    run(isa(), t, ids.data(), pos.data(), static_cast<int>(want.size()), want.data(), qkv, seen, mix, logits.data());
  }

  // Layers first..last over hidden states x (T, hidden), in place.
  void part(std::vector<Cache> caches, const std::string& fmt, int first, int last, In<int32_t, 1> pos, In<int64_t, 1> rows,
            In<int64_t, 2> also, In<int32_t, -1> tables, In<int32_t, 1> starts, In<int32_t, -1> lo, In<int32_t, -1> hi,
            InOut<float, 2> x) {
    const Paged paged = open_pages(caches, fmt, pos.size(), rows, also, tables, starts, lo, hi);
    expect(0 <= first && first <= last && last <= static_cast<int>(layers_.size()), "first and last must name layers");
    expect_whole(x, "x");
    expect(x.shape(0) == pos.size() && static_cast<int>(x.shape(1)) == hidden_, "x must be (rows, hidden)");
    expect_positions(pos);
    const Unlocked unlocked;
    const int t = static_cast<int>(pos.size()), width = (heads_ + 2 * kv_heads_) * dim_, inside = heads_ * dim_;
    float *qkv = qkv_.get(static_cast<size_t>(t) * width), *seen = seen_.get(static_cast<size_t>(t) * inside);
    ahead_.open(paged.streams, paged.tables, paged.stride, paged.hi);
    const auto mix = [&](size_t l, const float* from, float* to) { look_back(paged, l, t, pos.data(), from, to); };
    watch_.start();
    through(isa(), t, pos.data(), static_cast<size_t>(first), static_cast<size_t>(last), x.data(), qkv, seen, mix);
    ahead_.none();
  }

  // The same, but what lies between the rotated queries, keys and values and the heads' outputs is done by who is called
  // with each layer's number, from qkv (T, heads + 2 kv heads, dim) to seen (T, heads, dim), or natively by a Between.
  void step_around(In<int32_t, 1> ids, In<int32_t, 1> pos, In<int32_t, 1> want, InOut<float, 2> logits, InOut<float, 3> qkv,
                   InOut<float, 3> seen, nb::object between) {
    expect_step(ids, pos, want, logits);
    expect_whole(qkv, "qkv");
    expect_whole(seen, "seen");
    const size_t t = ids.size();
    expect(qkv.size() == t * static_cast<size_t>((heads_ + 2 * kv_heads_) * dim_) && seen.size() == t * static_cast<size_t>(heads_ * dim_),
           "qkv must be (rows, heads + 2 kv heads, dim) and seen (rows, heads, dim)");
    Between* native = nullptr;
    if (nb::try_cast(between, native, false) && native != nullptr)
      expect(native->fits(layers_.size(), t, heads_, kv_heads_, dim_), "between: it was made for another batch or model");
    const Unlocked unlocked;
    const auto mix = [&](size_t l, const float* from, float* to) {
      if (native != nullptr) return native->mix(isa(), l, from, to);
      const nb::gil_scoped_acquire locked;
      between(l);
    };
    run(isa(), static_cast<int>(t), ids.data(), pos.data(), static_cast<int>(want.size()), want.data(), qkv.data(), seen.data(), mix, logits.data());
  }

  nb::dict laps() {
    nb::dict all;
    for (int i = 0; i < Stopwatch::phases; i++) all[Stopwatch::names[i]] = watch_.seconds(i);
    watch_.clear();
    return all;
  }

 private:
  // A batch over all layers' pages, checked.
  struct Paged {
    const std::vector<Cache>& caches;
    KV kind;
    const int64_t *rows, *also;
    size_t extra;  // pairs of `also`: a row of the batch and one of the pages that holds the same
    const int32_t* tables;
    ptrdiff_t stride;
    const int32_t *lo, *hi;
    std::vector<Span> streams;
  };

  Paged open_pages(const std::vector<Cache>& caches, const std::string& fmt, size_t t, const In<int64_t, 1>& rows,
                   const In<int64_t, 2>& also, const In<int32_t, -1>& tables, const In<int32_t, 1>& starts,
                   const In<int32_t, -1>& lo, const In<int32_t, -1>& hi) const {
    const KV kind = kv_kind(fmt);
    expect(caches.size() == layers_.size(), "there must be one cache per layer");
    for (const Cache& cache : caches) {
      expect_cache(cache, kind, dim_);
      expect(static_cast<int>(cache.shape(1)) == kv_heads_ && cache.shape(0) == caches[0].shape(0), "a cache has the wrong shape");
    }
    expect_whole(rows, "rows");
    expect(rows.size() == t, "ids and rows must be equally long");
    const int64_t limit = static_cast<int64_t>(caches[0].shape(0)) * kPage;
    for (size_t i = 0; i < t; i++) expect(rows.data()[i] >= 0 && rows.data()[i] < limit, "rows: a row is outside the pages");
    expect_whole(also, "also");
    expect(also.shape(1) == 2, "also must be pairs of a row of the batch and one of the pages");
    for (size_t i = 0; i < also.size(); i += 2) {
      expect(also.data()[i] >= 0 && also.data()[i] < static_cast<int64_t>(t), "also: a row is outside the batch");
      expect(also.data()[i + 1] >= 0 && also.data()[i + 1] < limit, "also: a row is outside the pages");
    }
    expect(tables.ndim() == 2 && lo.ndim() == 1 && hi.ndim() == 1, "heads must look at the same pages");
    Seen seen = open_batch(t, caches[0].shape(0), static_cast<size_t>(kv_heads_), tables, starts, lo, hi);
    return {caches, kind, rows.data(), also.data(), also.size() / 2, tables.data(), static_cast<ptrdiff_t>(tables.shape(1)),
            lo.data(), hi.data(), std::move(seen.streams)};
  }

  // Stores a layer's keys and values and attends: qkv (T, heads + 2 kv heads, dim) -> seen (T, heads, dim).
  void look_back(const Paged& p, size_t l, int t, const int32_t* pos, const float* qkv, float* seen) {
    const Layer& layer = layers_[l];
    const Kernels& k = isa();
    const int width = (heads_ + 2 * kv_heads_) * dim_, wide = kv_heads_ * dim_;
    const Pages pages{p.caches[l].data(), p.kind, kv_heads_, dim_, p.caches[l].shape(2)};
    const float* keys = qkv + heads_ * dim_;
    kv_write(k, pages, p.rows, t, keys, width, keys + wide, width);
    for (size_t i = 0; i < p.extra; i++) {
      const float* from = keys + p.also[2 * i] * width;
      kv_write(k, pages, p.also + 2 * i + 1, 1, from, width, from + wide, width);
    }
    watch_.lap(Stopwatch::store);
    const int32_t* from = p.lo;
    if (layer.window > 0) {
      windowed_.resize(t);
      for (int i = 0; i < t; i++) windowed_[i] = std::max(from[i], pos[i] - (layer.window - 1));
      from = windowed_.data();
    }
    const Look look{qkv, width, pages.data, p.kind, dim_, kv_heads_, heads_ / kv_heads_, pages.bytes, nullptr, 0, from, p.hi, 1, 0, layer.scale, nullptr};
    attend(k, look, p.streams, p.tables, p.stride, seen, nullptr);
    if (l + 1 < layers_.size()) return ahead_.fetch(p.caches[l + 1]);
    ahead_.none();
  }

  void expect_positions(const In<int32_t, 1>& pos) const {
    expect_whole(pos, "pos");
    for (size_t i = 0; i < pos.size(); i++)
      for (const Layer& layer : layers_)
        expect(pos.data()[i] >= 0 && pos.data()[i] < layer.positions, "pos: a position is outside the table");
  }

  void expect_step(const In<int32_t, 1>& ids, const In<int32_t, 1>& pos, const In<int32_t, 1>& want, const InOut<float, 2>& logits) const {
    const int t = static_cast<int>(ids.size()), w = static_cast<int>(want.size());
    expect_whole(ids, "ids");
    expect_whole(want, "want");
    expect_whole(logits, "logits");
    expect_positions(pos);
    expect(static_cast<int>(pos.size()) == t, "ids and pos must be equally long");
    expect(static_cast<int>(logits.shape(0)) == w && static_cast<int>(logits.shape(1)) == head_.n, "logits must be (wanted rows, vocabulary)");
    for (int i = 0; i < t; i++) expect(ids.data()[i] >= 0 && ids.data()[i] < embed_.n, "ids: an id is out of range");
    for (int i = 0; i < w; i++) expect(want.data()[i] >= 0 && want.data()[i] < t, "want: a row is out of range");
  }

  // mix(layer, qkv, seen): from rotated queries, keys and values to what the heads give.
  template <class Mix>
  void run(const Kernels& k, int t, const int32_t* ids, const int32_t* pos, int w, const int32_t* want, float* qkv, float* seen,
           const Mix& mix, float* logits) {
    const int d = hidden_;
    watch_.start();
    float* x = x_.get(static_cast<size_t>(t) * d);
    embed(k, embed_, ids, t, x, d);
    if (embed_scale_ != 1.f)
      for (size_t i = 0; i < static_cast<size_t>(t) * d; i++) x[i] *= embed_scale_;
    watch_.lap(Stopwatch::embed);
    through(k, t, pos, 0, layers_.size(), x, qkv, seen, mix);
    float* last = added_.get(static_cast<size_t>(w) * d);
    for (int i = 0; i < w; i++) std::copy_n(x + static_cast<size_t>(want[i]) * d, d, last + static_cast<size_t>(i) * d);
    if (w) head_.times(k, [&](Weight form) { return rows_.normed(k, form, last, norm_, eps_, w, d); }, logits, false);
    watch_.lap(Stopwatch::head);
  }

  // Layers first..last: x (T, hidden) in place.
  template <class Mix>
  void through(const Kernels& k, int t, const int32_t* pos, size_t first, size_t last, float* x, float* qkv, float* seen, const Mix& mix) {
    const int d = hidden_, width = (heads_ + 2 * kv_heads_) * dim_, inside = heads_ * dim_;
    for (size_t l = first; l < last; l++) {
      const Layer& layer = layers_[l];
      layer.qkv.times(k, [&](Weight form) {
        const Rows normed = rows_.normed(k, form, x, layer.attn_norm, layer.eps, t, d);
        watch_.lap(Stopwatch::norm);
        return normed;
      }, qkv, false);
      watch_.lap(Stopwatch::qkv);
      if (layer.q_norm) {
        rmsnorm(k, qkv, width, layer.q_norm, layer.eps, qkv, width, t, heads_, dim_);
        rmsnorm(k, qkv + inside, width, layer.k_norm, layer.eps, qkv + inside, width, t, kv_heads_, dim_);
      }
      rope(k, qkv, width, pos, layer.rope, t, heads_ + kv_heads_, dim_, layer.rotated);
      watch_.lap(Stopwatch::rope);
      mix(l, qkv, seen);
      watch_.lap(Stopwatch::attend);
      join(layer.o, layer.attn_post, layer.eps, x, t, k, [&](Weight form) { return rows_.take(k, form, seen, inside, t, inside); });
      watch_.lap(Stopwatch::o);
      join(layer.down, layer.mlp_post, layer.eps, x, t, k, [&](Weight form) { return inner(k, layer, form, x, t); });
      watch_.lap(Stopwatch::down);
    }
  }

  // act(gate x) * (up x), normed x before: what `down` multiplies.
  Rows inner(const Kernels& k, const Layer& layer, Weight form, const float* x, int t) {
    const int wide = layer.down.k();
    const std::optional<Half> gate = layer.gate_up.half(0, wide), up = layer.gate_up.half(wide, wide);
    const auto normed = [&](Weight kind) {
      const Rows rows = rows_.normed(k, kind, x, layer.mlp_norm, layer.eps, t, hidden_);
      watch_.lap(Stopwatch::norm);
      return rows;
    };
    if (gate && up && form_of(gate->w.kind) == form_of(up->w.kind) && form != Weight::f32 && wide % kGroup == 0) {
      const Rows act = act_.gated(k, form, *gate, *up, gelu_, normed(gate->w.kind), wide);
      watch_.lap(Stopwatch::gate_up);
      return act;
    }
    float* both = both_.get(static_cast<size_t>(t) * 2 * wide);
    layer.gate_up.times(k, normed, both, false);
    watch_.lap(Stopwatch::gate_up);
    gated(k, both, 2 * wide, gelu_, both, 2 * wide, t, wide);
    watch_.lap(Stopwatch::gated);
    return act_.take(k, form, both, 2 * wide, t, wide);
  }

  // x += last(rows), normed on its way where the family does so.
  template <class Prepare>
  void join(const Stack& last, const float* post, float eps, float* x, int t, const Kernels& k, const Prepare& prepare) {
    if (post == nullptr) return last.times(k, prepare, x, true);
    const size_t size = static_cast<size_t>(t) * hidden_;
    float* added = added_.get(size);
    last.times(k, prepare, added, false);
    rmsnorm(k, added, hidden_, post, eps, added, hidden_, t, 1, hidden_);
    for (size_t i = 0; i < size; i++) x[i] += added[i];
  }

  int hidden_, heads_, kv_heads_, dim_;
  bool gelu_;
  float embed_scale_, eps_;
  Matrix embed_;
  Stack head_;
  const float* norm_;
  std::vector<Layer> layers_;
  std::vector<int32_t> windowed_;
  Stopwatch watch_;
  PagesAhead ahead_;
  Activations rows_{ahead_.errands()}, act_{ahead_.errands()};
  Scratch<float> x_, qkv_, seen_, both_, added_;  // aligned: a vector that crosses a cache line costs two
};

}  // namespace

void bind_fused(nb::module_& m) {
  // Arrays are borrowed: whoever makes one keeps them alive as long as it lives.
  nb::class_<Fused> fused(m, "Fused");
  fused
      .def(nb::init<int, int, int, int, bool, float, Part, std::vector<Part>, Vector, float>())
      .def("add", &Fused::add, nb::arg("qkv"), nb::arg("qkv_bias").none(), nb::arg("o"), nb::arg("o_bias").none(),
           nb::arg("gate_up"), nb::arg("down"), nb::arg("attn_norm"), nb::arg("mlp_norm"), nb::arg("attn_post").none(),
           nb::arg("mlp_post").none(), nb::arg("q_norm").none(), nb::arg("k_norm").none(), nb::arg("rope"),
           nb::arg("window"), nb::arg("scale"), nb::arg("eps"))
      .def("step", &Fused::step)
      .def("part", &Fused::part)
      .def("step_around", &Fused::step_around)
      .def("laps", &Fused::laps, "Seconds in each phase since the last call.");
  for (const char* name : {"ByLabels", "ByScores", "Remembered", "ByPages"}) fused.attr(name) = m.attr(name);
}

}  // namespace diastole
