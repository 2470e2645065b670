// The Python face of picking.hpp.
#include "picking.hpp"

#include "picking_check.hpp"
#include "pool.hpp"

namespace diastole {
namespace {

void keys_write_(Cache buf, In<int64_t, 1> rows, In<float, 3> k, std::optional<In<int32_t, 2>> channels, int bits) {
  expect_rows(k, "k");
  expect_whole(rows, "rows");
  const size_t heads = k.shape(1), own = k.shape(2), dim = expect_keys(buf, alone(bits));
  if (channels) expect_channels(*channels, heads, own, dim);
  expect(channels || own == dim, "buf: its pages have not the size of such keys");
  expect(k.shape(0) == rows.size() && heads == buf.shape(1), "k must be (rows, kv heads, dim)");
  expect_rows_within(rows, buf.shape(0));
  const Unlocked unlocked(static_cast<double>(k.size()));
  const Pages pages{buf.data(), KV::bf16, static_cast<int>(heads), static_cast<int>(dim), buf.shape(2)};
  keys_write(isa(), alone(bits), pages, rows.data(), static_cast<int>(rows.size()), k.data(), k.stride(0), static_cast<int>(own), channels ? channels->data() : nullptr,
             channels ? static_cast<int>(channels->shape(1)) : 0);
}

void choose_(In<float, 3> q, Cache buf, In<int32_t, 2> channels, In<int32_t, 1> which, In<int32_t, 2> tables, In<int32_t, 1> lo,
             In<int32_t, 1> hi, In<int32_t, 1> most, int sink, int recent, InOut<int64_t, 3> at, InOut<int32_t, 2> counts, int bits) {
  expect_rows(q, "q");
  expect_whole(at, "at");
  expect_whole(counts, "counts");
  const size_t r = which.size(), heads = q.shape(1), own = q.shape(2), kv_heads = buf.shape(1), dim = expect_keys(buf, alone(bits)), width = tables.shape(1);
  expect(kv_heads > 0 && heads % kv_heads == 0 && heads / kv_heads <= kTile, "q: heads must be a multiple of the key/value heads, at most 48 times");
  expect_channels(channels, kv_heads, own, dim);
  expect(at.shape(0) == r && at.shape(1) == kv_heads && counts.shape(0) == r && counts.shape(1) == kv_heads, "at and counts must be (rows, kv heads, ...)");
  expect(sink >= 0 && recent >= 0, "sink and recent must not be negative");
  const double tokens = expect_choosers(which, tables, lo, hi, most, q.shape(0), buf.shape(0));
  for (size_t i = 0; i < r; i++) expect(most.data()[i] <= static_cast<int64_t>(at.shape(2)), "most must be between 0 and the width of at");
  if (r == 0) return;
  Look look{};
  look.q = q.data(), look.q_stride = q.stride(0), look.pages = buf.data(), look.kind = KV::bf16, look.scale = 1.f;
  look.dim = static_cast<int>(dim), look.kv_heads = static_cast<int>(kv_heads), look.group = static_cast<int>(heads / kv_heads);
  look.page_bytes = buf.shape(2);
  const Choice choice{which.data(), tables.data(), lo.data(), hi.data(), most.data(), channels.data(), static_cast<int>(r),
                      static_cast<int>(width), static_cast<int>(channels.shape(1)), sink, recent};
  const Unlocked unlocked(tokens * static_cast<double>(heads * dim));
  choose(isa(), alone(bits), look, static_cast<int>(own), choice, static_cast<int>(at.shape(2)), at.data(), counts.data());
}

void scores_(In<float, 3> q, Cache buf, const std::string& fmt, In<int32_t, -1> tables, In<int32_t, 1> starts, In<int32_t, -1> lo,
             In<int32_t, -1> hi, float scale, InOut<float, 3> out, std::optional<In<float, 2>> less) {
  const size_t heads = q.shape(1), dim = q.shape(2), kv_heads = buf.shape(1);
  Look look;
  if (fmt == "keys") {
    expect_rows(q, "q");
    expect_whole(buf, "buf");
    expect(dim % 16 == 0 && dim > 0 && dim <= kMaxDim, "q: the last axis must be a multiple of 16 up to 256");
    expect(buf.shape(2) == dim * kPage * 2, "buf: its pages have not the size of such keys");
    expect(kv_heads > 0 && heads % kv_heads == 0 && heads / kv_heads <= kTile, "q: heads must be a multiple of the key/value heads, at most 48 times");
    look = {q.data(), q.stride(0), buf.data(), KV::bf16, static_cast<int>(dim), static_cast<int>(kv_heads), static_cast<int>(heads / kv_heads),
            buf.shape(2), nullptr, 0, nullptr, nullptr, 1, 0, scale, nullptr};
  } else {
    look = open_look(q, buf, kv_kind(fmt), scale);
  }
  expect_whole(out, "out");
  expect(out.shape(0) == q.shape(0) && (out.shape(1) == heads || out.shape(1) == kv_heads), "out must be (rows, heads or kv heads, tokens)");
  if (less) {
    expect_whole(*less, "less");
    expect(less->shape(0) == q.shape(0) && less->shape(1) == heads, "less must be (rows, heads)");
  }
  const Seen seen = open_batch(q.shape(0), buf.shape(0), kv_heads, tables, starts, lo, hi);
  for (size_t i = 0; i < hi.size(); i++) expect(hi.data()[i] <= static_cast<int64_t>(out.shape(2)), "out has fewer tokens than a row sees");
  look.table_step = seen.table_step, look.row_step = seen.row_step, look.head_step = seen.head_step;
  look.lo = lo.data(), look.hi = hi.data();
  const Unlocked unlocked(seen.tokens * look.group * look.dim);
  scores(isa(), look, seen.streams, tables.data(), seen.stride, less ? less->data() : nullptr, out.data(), static_cast<int>(out.shape(1)), static_cast<int>(out.shape(2)));
}

void tops_(In<float, 2> x, In<int32_t, 1> k, InOut<int32_t, 2> places, InOut<int32_t, 1> counts) {
  expect_rows(x, "x");
  expect_whole(k, "k");
  expect_whole(places, "places");
  expect_whole(counts, "counts");
  const int rows = static_cast<int>(x.shape(0)), n = static_cast<int>(x.shape(1)), width = static_cast<int>(places.shape(1));
  expect(static_cast<int>(k.size()) == rows && static_cast<int>(counts.size()) == rows && static_cast<int>(places.shape(0)) == rows,
         "k, places and counts must have one entry per row of x");
  for (int i = 0; i < rows; i++) expect(k.data()[i] >= 0 && k.data()[i] <= width, "k must be between 0 and the width of places");
  const Unlocked unlocked(static_cast<double>(x.size()) * 16);
  Pool::get().each(rows, [&](int i) {
    int32_t* to = places.data() + static_cast<ptrdiff_t>(i) * width;
    const int count = top_places(isa(), x.data() + i * x.stride(0), n, k.data()[i], to);
    std::fill(to + count, to + width, -1);
    counts.data()[i] = count;
  }, static_cast<double>(x.size()) >= kAlone);
}

void attend_tokens_(In<float, 3> q, Cache buf, const std::string& fmt, In<int32_t, 1> which, In<int64_t, 3> at, In<int32_t, 2> counts,
                    float scale, InOut<float, 3> out, std::optional<InOut<float, 2>> lse) {
  const Look look = open_look(q, buf, kv_kind(fmt), scale);
  expect_out(q, out, lse);
  expect_whole(which, "which");
  expect_whole(at, "at");
  expect_whole(counts, "counts");
  const size_t r = which.size(), sets = at.shape(1), width = at.shape(2);
  expect(at.shape(0) == r && counts.shape(0) == r && counts.shape(1) == sets, "at must be (rows, sets, tokens) and counts (rows, sets)");
  expect(sets == buf.shape(1) || sets == q.shape(1), "at must have a set for each key/value head, or for each query head");
  const int64_t limit = static_cast<int64_t>(buf.shape(0)) * kPage;
  double tokens = 0;
  for (size_t i = 0; i < r; i++)
    expect(which.data()[i] >= 0 && which.data()[i] < static_cast<int>(q.shape(0)), "which: a row is outside q");
  for (size_t i = 0; i < r * sets; i++) {
    const int n = counts.data()[i];
    expect(n >= 0 && n <= static_cast<int>(width), "counts must be between 0 and the width of at");
    for (int j = 0; j < n; j++) {
      const int64_t row = at.data()[i * width + static_cast<size_t>(j)];
      expect(row >= 0 && row < limit, "at: a row is outside the pages");
    }
    tokens += n;
  }
  const Chosen chosen{which.data(), at.data(), counts.data(), static_cast<int>(r), static_cast<int>(sets), static_cast<int>(width)};
  const Unlocked unlocked(tokens * look.group * look.dim);
  if (r > 0) attend_tokens(isa(), look, chosen, out.data(), lse ? lse->data() : nullptr);
}

// The bits of bfloat16 travel as the bytes that they are.
void page_scores_(In<float, 3> q, Cache index, In<int32_t, 2> tables, In<int32_t, 1> starts, In<int32_t, 1> n, InOut<float, 3> out) {
  expect_rows(q, "q");
  expect_whole(index, "index");
  expect_whole(tables, "tables");
  expect_whole(starts, "starts");
  expect_whole(n, "n");
  expect_whole(out, "out");
  const size_t rows = q.shape(0), heads = q.shape(1), dim = q.shape(2), kv_heads = index.shape(1), width = tables.shape(1);
  expect(kv_heads > 0 && heads % kv_heads == 0, "q: heads must be a multiple of the key/value heads");
  expect(dim % 32 == 0 && dim > 0, "q: the last axis must be a multiple of 32");
  expect(index.shape(2) > 0 && index.shape(2) % (2 * dim) == 0, "index must hold whole rows of q's last axis for each page");
  expect(reinterpret_cast<uintptr_t>(index.data()) % 2 == 0, "index must be aligned to 2 bytes");
  const size_t per = index.shape(2) / (2 * dim);
  expect(starts.size() == tables.shape(0) + 1 && starts.data()[0] == 0 && starts.data()[tables.shape(0)] == static_cast<int>(rows), "starts must run from 0 to the rows");
  expect(n.size() == rows, "n must have one entry per row of q");
  expect(out.shape(0) == rows && out.shape(1) == kv_heads && (out.shape(2) == width || out.shape(2) == width * per), "out must be (rows, kv heads, pages or pages times the index's rows)");
  std::vector<Span> streams;
  for (size_t b = 0; b < tables.shape(0); b++) {
    const int t0 = starts.data()[b], t1 = starts.data()[b + 1];
    expect(t0 <= t1 && t1 <= static_cast<int>(rows), "starts must not decrease");
    for (int t = t0; t < t1; t++) {
      expect(n.data()[t] >= 0 && n.data()[t] <= static_cast<int>(width), "n must be between 0 and the width of tables");
      for (int p = 0; p < n.data()[t]; p++) {
        const int32_t id = tables.data()[b * width + static_cast<size_t>(p)];
        expect(id >= 0 && id < static_cast<int>(index.shape(0)), "tables: a page id is out of range");
      }
    }
    streams.push_back({t0, t1});
  }
  Look look{};
  look.q = q.data(), look.q_stride = q.stride(0), look.dim = static_cast<int>(dim);
  look.kv_heads = static_cast<int>(kv_heads), look.group = static_cast<int>(heads / kv_heads);
  const Unlocked unlocked(static_cast<double>(rows * width * per * heads * dim));
  page_scores(isa(), look, reinterpret_cast<const uint16_t*>(index.data()), static_cast<int>(per), streams, tables.data(), static_cast<int>(width), n.data(),
              out.shape(2) != width, out.data());
}

void pick_pages_(In<float, 3> q, Cache index, int per, In<int32_t, 2> tables, In<int32_t, 1> blocks, In<int32_t, 1> heads, int first,
                 int recent, InOut<int32_t, 3> places, In<int32_t, 1> runs, InOut<int32_t, 3> pages) {
  expect_rows(q, "q");
  expect_whole(index, "index");
  const size_t rows = q.shape(0), dim = q.shape(2), kv_heads = heads.size(), width = tables.shape(1), k = places.shape(2);
  expect(kv_heads > 0 && q.shape(1) % kv_heads == 0, "q: heads must be a multiple of the key/value heads");
  expect(dim % 16 == 0 && dim > 0 && dim <= kMaxDim, "q: the last axis must be a multiple of 16 up to 256");
  expect(per > 0 && per <= 16 && 16 % per == 0, "per must be 1, 2, 4, 8 or 16");
  expect(index.shape(2) == 4 * dim * static_cast<size_t>(per), "index must hold twice `per` rows of q's last axis for each page");
  expect(reinterpret_cast<uintptr_t>(index.data()) % 2 == 0, "index must be aligned to 2 bytes");
  expect_bounded(rows, kv_heads, index, tables, blocks, heads, first, recent, places, runs, pages);
  Look look{};
  look.q = q.data(), look.q_stride = q.stride(0), look.dim = static_cast<int>(dim);
  look.kv_heads = static_cast<int>(kv_heads), look.group = static_cast<int>(q.shape(1) / kv_heads);
  const Bounded bounded{tables.data(), blocks.data(), heads.data(), runs.data(), static_cast<int>(rows), static_cast<int>(width), static_cast<int>(k), first, recent,
                        static_cast<int>(index.shape(1))};
  const Unlocked unlocked(static_cast<double>(rows * width * q.shape(1) * dim) * per);
  pick_pages(isa(), look, reinterpret_cast<const uint16_t*>(index.data()), per, bounded, places.data(), pages.data(),
             static_cast<ptrdiff_t>(pages.shape(2)));
}

}  // namespace

void bind_picking(nb::module_& m) {
  m.def("keys_write", keys_write_, nb::arg("buf"), nb::arg("rows"), nb::arg("k"), nb::arg("channels").none() = nb::none(), nb::arg("bits") = 16);
  m.def("choose", choose_, nb::arg("q"), nb::arg("buf"), nb::arg("channels"), nb::arg("which"), nb::arg("tables"), nb::arg("lo"), nb::arg("hi"),
        nb::arg("most"), nb::arg("sink"), nb::arg("recent"), nb::arg("at"), nb::arg("counts"), nb::arg("bits") = 16);
  m.def("scores", scores_, nb::arg("q"), nb::arg("buf"), nb::arg("fmt"), nb::arg("tables"), nb::arg("starts"), nb::arg("lo"), nb::arg("hi"),
        nb::arg("scale"), nb::arg("out"), nb::arg("less").none() = nb::none());
  m.def("tops", tops_);
  m.def("attend_tokens", attend_tokens_, nb::arg("q"), nb::arg("buf"), nb::arg("fmt"), nb::arg("which"), nb::arg("at"), nb::arg("counts"),
        nb::arg("scale"), nb::arg("out"), nb::arg("lse").none() = nb::none());
  m.def("page_scores", page_scores_);
  m.def("pick_pages", pick_pages_);
}

}  // namespace diastole
