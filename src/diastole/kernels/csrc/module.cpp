// The Python face: checks shapes and indices, lets go of the interpreter lock, calls the operators.
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <cstring>

#include "check.hpp"
#include "draw.hpp"
#include "memory.hpp"
#include "pool.hpp"
#include "sampler.hpp"

using namespace diastole;

namespace diastole {
void bind_between(nb::module_& m);
void bind_fused(nb::module_& m);
void bind_picking(nb::module_& m);
void bind_shadow(nb::module_& m);
void bind_schedule(nb::module_& m);
void bind_lines(nb::module_& m);
void bind_zip(nb::module_& m);
void bind_grams(nb::module_& m);
}

namespace {

void linear_(In<float, 2> x, const std::string& kind, int n, int k, Bytes data, InOut<float, 2> out,
             std::optional<In<float, 1>> bias, bool accumulate) {
  const Matrix w = matrix(kind, n, k, data);
  expect_rows(x, "x");
  expect_rows(out, "out");
  expect(static_cast<int>(x.shape(1)) == k, "x: the second axis must be the weight's k");
  expect(out.shape(0) == x.shape(0) && static_cast<int>(out.shape(1)) == n, "out must be (rows of x, weight's n)");
  if (bias) {
    expect_whole(*bias, "bias");
    expect(static_cast<int>(bias->size()) == n, "bias must be (n,)");
  }
  const Out to{out.data(), out.stride(0), bias ? bias->data() : nullptr, accumulate};
  const Unlocked unlocked(static_cast<double>(x.size()) * n);
  linear(isa(), w, x.data(), x.stride(0), static_cast<int>(x.shape(0)), to);
}

void embed_(const std::string& kind, int n, int k, Bytes data, In<int32_t, 1> ids, InOut<float, 2> out) {
  const Matrix w = matrix(kind, n, k, data);
  expect_whole(ids, "ids");
  expect_rows(out, "out");
  expect(out.shape(0) == ids.size() && static_cast<int>(out.shape(1)) == k, "out must be (ids, weight's k)");
  for (size_t i = 0; i < ids.size(); i++) expect(ids.data()[i] >= 0 && ids.data()[i] < n, "ids: an id is out of range");
  const Unlocked unlocked(static_cast<double>(out.size()));
  embed(isa(), w, ids.data(), static_cast<int>(ids.size()), out.data(), out.stride(0));
}

// Rows of a (T, K) or (T, H, D) array, each of which is normalised over its last axis.
template <class A>
size_t inner(const A& a) {
  return a.ndim() == 3 ? a.shape(1) : 1;
}

void rmsnorm_(In<float, -1> x, In<float, 1> weight, float eps, InOut<float, -1> out) {
  x.named("x");
  out.named("out");
  expect(x.ndim() == 2 || x.ndim() == 3, "x must have two or three axes");
  expect(out.ndim() == x.ndim(), "out must have the shape of x");
  for (size_t i = 0; i < x.ndim(); i++) expect(out.shape(i) == x.shape(i), "out must have the shape of x");
  expect_rows(x, "x");
  expect_rows(out, "out");
  expect_whole(weight, "weight");
  const int k = static_cast<int>(weight.size()), heads = static_cast<int>(inner(x));
  expect(static_cast<int>(x.shape(x.ndim() - 1)) == k, "weight must have the size of the last axis of x");
  const Unlocked unlocked(static_cast<double>(x.size()));
  rmsnorm(isa(), x.data(), x.stride(0), weight.data(), eps, out.data(), out.stride(0), static_cast<int>(x.shape(0)), heads, k);
}

void rope_(InOut<float, 3> x, In<int32_t, 1> pos, In<float, 2> table) {
  expect_rows(x, "x");
  expect_whole(pos, "pos");
  expect_whole(table, "table");
  const int heads = static_cast<int>(x.shape(1)), dim = static_cast<int>(x.shape(2));
  const int rotated = static_cast<int>(table.shape(1));
  expect(pos.size() == x.shape(0), "pos must have one entry per row of x");
  expect(rotated % 2 == 0 && rotated <= dim, "table: its second axis must be even and at most the head's dimension");
  const int32_t positions = static_cast<int32_t>(table.shape(0));
  for (size_t t = 0; t < pos.size(); t++)
    expect(pos.data()[t] >= 0 && pos.data()[t] < positions, "pos: a position is outside the table");
  const Unlocked unlocked(static_cast<double>(x.size()));
  rope(isa(), x.data(), x.stride(0), pos.data(), table.data(), static_cast<int>(pos.size()), heads, dim, rotated);
}

void gated_(In<float, 2> gu, const std::string& kind, InOut<float, 2> out) {
  expect_rows(gu, "gu");
  expect_rows(out, "out");
  expect(kind == "silu" || kind == "gelu_tanh", "kind must be silu or gelu_tanh");
  expect(out.shape(0) == gu.shape(0) && 2 * out.shape(1) == gu.shape(1), "out must be half as wide as gu");
  const int n = static_cast<int>(out.shape(1)), rows = static_cast<int>(out.shape(0));
  const Unlocked unlocked(static_cast<double>(gu.size()) * 4);
  gated(isa(), gu.data(), gu.stride(0), kind == "gelu_tanh", out.data(), out.stride(0), rows, n);
}

template <class A>
void expect_pictures(const A& a, const char* name) {
  a.named(name);
  if (a.size() > 0 && a.shape(3) > 1 && a.stride(3) != 1) fail(std::string(name) + ": the last axis must be contiguous");
}

void groupnorm_(In<float, 4> x, In<float, 2> w, int groups, float eps, InOut<float, 4> out, std::optional<In<float, 2>> add,
                 bool silu) {
  expect_pictures(x, "x");
  expect_pictures(out, "out");
  expect_whole(w, "w");
  for (int i = 0; i < 4; i++) expect(x.shape(i) == out.shape(i), "out must have the shape of x");
  const size_t c = x.shape(3);
  expect(w.shape(0) == 2 && w.shape(1) == c, "w must be (2, channels)");
  expect(groups > 0 && c > 0 && c % static_cast<size_t>(groups) == 0, "groups must divide the channels");
  if (add) {
    expect_whole(*add, "add");
    expect(add->shape(0) == x.shape(0) && add->shape(1) == c, "add must be (pictures, channels)");
  }
  if (x.size() == 0) return;
  const auto n = [&](int axis) { return static_cast<int>(x.shape(axis)); };
  const GroupNorm how{n(0), n(1), n(2), n(3), groups, w.data(), w.data() + c, add ? add->data() : nullptr, eps, silu};
  const Unlocked unlocked(static_cast<double>(x.size()) * 4);
  groupnorm(isa(), how, {x.data(), x.stride(0), x.stride(1), x.stride(2)}, {out.data(), out.stride(0), out.stride(1), out.stride(2)});
}

// ---- keys and values

template <class Buffer, class KeysOrValues>
void expect_kv(const Buffer& buf, KV kind, const In<int64_t, 1>& rows, const KeysOrValues& k, const KeysOrValues& v) {
  expect_rows(k, "k");
  expect_rows(v, "v");
  expect_whole(rows, "rows");
  expect_whole(buf, "buf");
  for (int i = 0; i < 3; i++) expect(k.shape(i) == v.shape(i), "k and v must have the same shape");
  expect(k.shape(0) == rows.size() && k.shape(1) == buf.shape(1), "k and v must be (rows, kv heads, dim)");
  expect_cache(buf, kind, k.shape(2));
  const int64_t limit = static_cast<int64_t>(buf.shape(0)) * kPage;
  for (size_t i = 0; i < rows.size(); i++)
    expect(rows.data()[i] >= 0 && rows.data()[i] < limit, "rows: a row is outside the pages");
}

void kv_write_(Cache buf, const std::string& fmt, In<int64_t, 1> rows, In<float, 3> k, In<float, 3> v) {
  const KV kind = kv_kind(fmt);
  expect_kv(buf, kind, rows, k, v);
  const Pages pages{buf.data(), kind, static_cast<int>(buf.shape(1)), static_cast<int>(k.shape(2)), buf.shape(2)};
  const Unlocked unlocked(static_cast<double>(k.size()) * 2);
  kv_write(isa(), pages, rows.data(), static_cast<int>(rows.size()), k.data(), k.stride(0), v.data(), v.stride(0));
}

void kv_read_(Cache buf, const std::string& fmt, In<int64_t, 1> rows, InOut<float, 3> k, InOut<float, 3> v) {
  const KV kind = kv_kind(fmt);
  expect_kv(buf, kind, rows, k, v);
  const int dim = static_cast<int>(k.shape(2)), heads = static_cast<int>(k.shape(1));
  const Kernels& kernels = isa();
  const Pages pages{buf.data(), kind, heads, dim, buf.shape(2)};
  const Unlocked unlocked(static_cast<double>(k.size()) * 2);
  for (size_t t = 0; t < rows.size(); t++)
    for (int h = 0; h < heads; h++) {
      const int64_t row = rows.data()[t];
      kernels.kv_read(kind, pages.at(row, h), static_cast<int>(row % kPage), dim, k.data() + t * k.stride(0) + h * dim,
                      v.data() + t * v.stride(0) + h * dim);
    }
}

void attend_(In<float, 3> q, Cache buf, const std::string& fmt, In<int32_t, -1> tables, In<int32_t, 1> starts,
             In<int32_t, -1> lo, In<int32_t, -1> hi, float scale, InOut<float, 3> out, std::optional<InOut<float, 2>> lse) {
  Look look = open_look(q, buf, kv_kind(fmt), scale);
  expect_out(q, out, lse);
  const Seen seen = open_batch(q.shape(0), buf.shape(0), buf.shape(1), tables, starts, lo, hi);
  look.table_step = seen.table_step, look.row_step = seen.row_step, look.head_step = seen.head_step;
  look.lo = lo.data(), look.hi = hi.data();
  const Unlocked unlocked(seen.tokens * look.group * look.dim);
  attend(isa(), look, seen.streams, tables.data(), seen.stride, out.data(), lse ? lse->data() : nullptr);
}

// ---- memory and packing

using Whole = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

// Zeroed, on huge pages where that helps, taken from the system only as it is touched.
Whole alloc(int64_t bytes) {
  expect(bytes >= 0, "size must not be negative");
  expect(bytes <= int64_t{1} << 46, "size is more than any machine has");
  const size_t size = static_cast<size_t>(bytes);
  auto* piece = new Piece(take(size));
  nb::capsule owner(piece, [](void* p) noexcept { delete static_cast<Piece*>(p); });
  return Whole(piece->data, {size}, owner);
}

// ---- choosing tokens

// See kernels.draw. adjusted: rows that stand for those of logits; wishes: one after the other, in bytes.
void sample_(In<float, 2> logits, nb::dict adjusted, Bytes wishes, In<int64_t, 1> positions, InOut<int64_t, 1> out,
             std::optional<In<int64_t, 1>> which) {
  static_assert(sizeof(Wish) == 24, "a wish must be as kernels.draw packs it");
  expect_whole(logits, "logits");
  expect_whole(wishes, "wishes");
  expect_whole(positions, "positions");
  expect_whole(out, "out");
  const size_t rows = which ? which->size() : logits.shape(0), n = logits.shape(1);
  expect(n > 0 && n <= INT32_MAX, "logits must not be empty");
  expect(wishes.size() == rows * sizeof(Wish) && positions.size() == rows && out.size() == rows,
         "rows, wishes, positions and out must be as many");
  if (which) expect_whole(*which, "rows");
  std::vector<const float*> row(rows);
  for (size_t i = 0; i < rows; i++) {
    const int64_t at = which ? which->data()[i] : static_cast<int64_t>(i);
    expect(at >= 0 && at < static_cast<int64_t>(logits.shape(0)), "rows must name rows of logits");
    row[i] = logits.data() + at * n;
  }
  for (const auto& [index, given] : adjusted) {
    const auto other = nb::cast<In<float, 1>>(given);
    const size_t i = nb::cast<size_t>(index);
    expect_whole(other, "adjusted");
    expect(i < rows && other.size() == n, "adjusted must hold rows of logits by their index");
    row[i] = other.data();  // the dictionary keeps it
  }
  const Unlocked unlocked(static_cast<double>(rows) * static_cast<double>(n));
  Pool::get().each(static_cast<int>(rows), [&](int i) {
    Wish wish;
    std::memcpy(&wish, wishes.data() + static_cast<size_t>(i) * sizeof(Wish), sizeof(Wish));
    wish.key = mix(wish.key + static_cast<uint64_t>(positions.data()[i]));
    out.data()[i] = sample(isa(), row[i], static_cast<int>(n), wish);
  });
}

// ---- what the machine could do

// Multiply-adds done by all threads together, each `rounds` rounds of a weight kind's instruction.
double probe_peak(const std::string& kind, int64_t rounds) {
  expect(rounds > 0 && rounds < int64_t{1} << 40, "rounds must be positive and below 2^40");
  const Weight w = weight_kind(kind);
  const Unlocked unlocked;
  const int threads = Pool::get().threads();
  std::vector<double> done(threads);
  Pool::get().each(threads, [&](int i) { done[i] = isa().peak(w, rounds); });
  double sum = 0;
  for (double d : done) sum += d;
  return sum;
}

// Reads all of it once, spread over the threads; the sum of its words, so that nothing can be left out.
int64_t probe_read(Bytes data) {
  expect_whole(data, "data");
  constexpr size_t kPiece = size_t{1} << 20;
  const size_t pieces = data.size() / kPiece;
  expect(pieces > 0 && pieces < 1u << 20 && data.size() % kPiece == 0, "data must hold 1 MiB to 1 TiB, in whole MiB");
  const Unlocked unlocked;
  std::vector<int32_t> sums(pieces);
  Pool::get().each(static_cast<int>(pieces), [&](int i) { sums[i] = isa().sweep(data.data() + i * kPiece, kPiece); });
  int64_t sum = 0;
  for (int32_t s : sums) sum += s;
  return sum;
}

template <class F>
bool unlocked(const F& f) {
  const Unlocked others_run;
  return f();
}

template <class T>
void expect_matrix(const In<T, 2>& a, const char* name, size_t n, size_t k) {
  expect_whole(a, name);
  expect(n > 0 && k > 0, "a matrix must not be empty");
  if (a.shape(0) != n || a.shape(1) != k) fail(std::string(name) + " has the wrong shape");
}

Whole pack_q4_(const std::string& kind, In<uint8_t, 2> q, In<float, 2> d, In<float, 2> m) {
  const Weight to = weight_kind(kind);
  expect(to == Weight::q4 || to == Weight::q4s, "kind must be q4 or q4s");
  q.named("q");
  const size_t n = q.shape(0), k = q.shape(1);
  expect(k % kGroup == 0, "q: columns must be a multiple of 32 for integer formats");
  expect_matrix(q, "q", n, k);
  expect_matrix(d, "d", n, k / kGroup);
  expect_matrix(m, "m", n, k / kGroup);
  Whole out = alloc(packed_bytes(to, static_cast<int>(n), static_cast<int>(k)));
  const int rows = static_cast<int>(n), columns = static_cast<int>(k);
  expect(unlocked([&] { return pack_q4(to, q.data(), d.data(), m.data(), rows, columns, out.data()); }),
         "q must hold 0..15, and d and m must be finite and below 65520");
  return out;
}

Whole pack_q4b_(In<uint8_t, 2> q, In<uint8_t, 2> both, In<float, 2> scales) {
  q.named("q");
  const size_t n = q.shape(0), k = q.shape(1);
  expect(k % kGroup == 0, "q: columns must be a multiple of 32 for integer formats");
  expect_matrix(q, "q", n, k);
  expect_matrix(both, "both", n, k / kGroup * 2);
  expect_matrix(scales, "scales", n, 2);
  const int rows = static_cast<int>(n), columns = static_cast<int>(k);
  Whole out = alloc(packed_bytes(Weight::q4b, rows, columns));
  expect(unlocked([&] { return pack_q4b(q.data(), both.data(), scales.data(), rows, columns, out.data()); }),
         "q must hold 0..15, and scales must be finite and below 65520");
  return out;
}

Whole pack_q8_(In<int8_t, 2> q, In<float, 2> d) {
  q.named("q");
  const size_t n = q.shape(0), k = q.shape(1);
  expect(k % kGroup == 0, "q: columns must be a multiple of 32 for integer formats");
  expect_matrix(q, "q", n, k);
  expect_matrix(d, "d", n, k / kGroup);
  Whole out = alloc(packed_bytes(Weight::q8, static_cast<int>(n), static_cast<int>(k)));
  const int rows = static_cast<int>(n), columns = static_cast<int>(k);
  expect(unlocked([&] { return pack_q8(q.data(), d.data(), rows, columns, out.data()); }),
         "d must be finite and below 65520");
  return out;
}

Whole pack_float_(In<float, 2> w, const std::string& kind) {
  const Weight to = weight_kind(kind);
  expect(to == Weight::bf16 || to == Weight::f32, "kind must be bf16 or f32");
  w.named("w");
  const int n = static_cast<int>(w.shape(0)), k = static_cast<int>(w.shape(1));
  expect(k % 2 == 0 || to == Weight::f32, "w: columns must be even for bf16");
  expect_whole(w, "w");
  expect(n > 0 && k > 0, "w must not be empty");
  Whole out = alloc(packed_bytes(to, n, k));
  const Unlocked unlocked;
  (to == Weight::bf16 ? pack_bf16 : pack_f32)(w.data(), n, k, out.data());
  return out;
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native operators on numpy arrays. Use them through diastole.kernels.table.";
  m.def("linear", linear_, nb::arg("x"), nb::arg("kind"), nb::arg("n"), nb::arg("k"), nb::arg("data"), nb::arg("out"),
        nb::arg("bias").none(), nb::arg("accumulate"));
  m.def("embed", embed_);
  m.def("rmsnorm", rmsnorm_);
  m.def("rope", rope_);
  m.def("gated", gated_);
  m.def("groupnorm", groupnorm_, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg());
  m.def("kv_write", kv_write_);
  m.def("kv_read", kv_read_);
  m.def("attend", attend_, nb::arg("q"), nb::arg("buf"), nb::arg("fmt"), nb::arg("tables"), nb::arg("starts"),
        nb::arg("lo"), nb::arg("hi"), nb::arg("scale"), nb::arg("out"), nb::arg("lse").none() = nb::none());
  m.def("kv_page_bytes", [](const std::string& fmt, int64_t dim) {
    expect(dim % 16 == 0 && dim > 0 && dim <= kMaxDim, "the head's dimension must be a multiple of 16 up to 256");
    return kv_page_bytes(kv_kind(fmt), static_cast<int>(dim));
  });
  m.def("alloc", alloc);
  m.def("pack_q4", pack_q4_);
  m.def("pack_q4b", pack_q4b_);
  m.def("pack_q8", pack_q8_);
  m.def("pack_float", pack_float_);
  m.def("packed_bytes", [](const std::string& kind, int n, int k) { return expect_packed(weight_kind(kind), n, k); });
  m.def("sample", sample_, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none() = nb::none());
  m.def("probe_peak", probe_peak);
  m.def("probe_read", probe_read);
  m.def("isa", [] { return std::string(isa().name); });
  m.def("rounding", [] { return isa().tiles ? "bf16/32" : "int8/16"; }, "How integer formats round x.");
  m.def("set_isa", [](const std::string& name) {
    const Kernels* found = choose(name.c_str());
    if (found == nullptr) fail("this machine does not run the kernels called " + name);
    active.store(found);
  });
  bind_between(m);
  bind_fused(m);
  bind_picking(m);
  bind_shadow(m);
  bind_schedule(m);
  bind_lines(m);
  bind_zip(m);
  bind_grams(m);
  m.def("isas", [] {
    nb::list names;
    for (const char* name : {"amx", "avx512bf16", "avx512", "avx2", "scalar"})
      if (choose(name) != nullptr) names.append(name);
    return names;
  });
  m.def("threads", [] { return Pool::get().threads(); });
  m.def("set_threads", [](int n) {
    expect(n >= 1 && n <= 1024, "threads must be between 1 and 1024");
    const Unlocked unlocked;  // a loop that runs must end first, and its caller may want the lock
    Pool::get().set_threads(n);
  });
  // Threads are joined while the interpreter still stands.
  nb::module_::import_("atexit").attr("register")(nb::cpp_function([] {
    const Unlocked unlocked;
    Pool::get().set_threads(1);
  }));
}
