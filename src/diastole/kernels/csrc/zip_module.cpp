// The Python face of pages of codes: see zip.inl.
#include "check.hpp"
#include "pool.hpp"

namespace diastole {
namespace {

void expect_codes(const Cache& zip, size_t dim, int64_t fine) {
  expect_whole(zip, "zip");
  expect(dim % 16 == 0 && dim > 0 && dim <= kMaxDim, "the head's dimension must be a multiple of 16 up to 256");
  expect(fine >= 0 && fine <= kPage && fine % 4 == 0, "fine must be a multiple of 4 up to 64");
  expect(zip.shape(2) == zip_page_bytes(static_cast<int>(dim), static_cast<int>(fine)), "zip: its pages have not the size of such codes");
}

// A page in bf16 as large as raw's pages are.
size_t raw_dim(const Cache& raw) {
  expect_whole(raw, "raw");
  const size_t dim = raw.shape(2) / (4 * kPage);
  expect_cache(raw, KV::bf16, dim);
  return dim;
}

void zip_seal_(Cache raw, In<int32_t, 1> slots, Cache zip, In<int32_t, 1> pages, In<uint64_t, 2> masks, int64_t fine) {
  const size_t dim = raw_dim(raw), heads = raw.shape(1), n = pages.size();
  expect_codes(zip, dim, fine);
  expect(zip.shape(1) == heads, "raw and zip must have the same heads");
  expect_whole(slots, "slots");
  expect_whole(pages, "pages");
  expect_whole(masks, "masks");
  expect(slots.size() == n && masks.shape(0) == n && masks.shape(1) == heads, "slots, pages and masks must have one entry per page");
  for (size_t i = 0; i < n; i++) {
    expect(slots.data()[i] >= 0 && slots.data()[i] < static_cast<int>(raw.shape(0)), "slots: a page is outside raw");
    expect(pages.data()[i] >= 0 && pages.data()[i] < static_cast<int>(zip.shape(0)), "pages: a page is outside zip");
  }
  for (size_t i = 0; i < n * heads; i++)
    expect(__builtin_popcountll(masks.data()[i]) == fine, "masks: each must have as many bits as fine says");
  const Kernels& kernels = isa();
  const Unlocked unlocked(static_cast<double>(n * heads * dim) * kPage);
  Pool::get().each(static_cast<int>(n * heads), [&](int i) {
    const size_t page = static_cast<size_t>(i) / heads, head = static_cast<size_t>(i) % heads;
    kernels.zip_seal(raw.data() + (static_cast<size_t>(slots.data()[page]) * heads + head) * raw.shape(2), static_cast<int>(dim), masks.data()[i],
                     zip.data() + (static_cast<size_t>(pages.data()[page]) * heads + head) * zip.shape(2));
  });
}

void zip_open_(Cache zip, In<int32_t, 1> pages, int64_t fine, InOut<float, 4> k, InOut<float, 4> v) {
  const size_t n = pages.size(), heads = zip.shape(1), dim = k.shape(3);
  expect_codes(zip, dim, fine);
  expect_whole(pages, "pages");
  expect_whole(k, "k");
  expect_whole(v, "v");
  for (size_t i = 0; i < 4; i++) expect(k.shape(i) == v.shape(i), "k and v must have the same shape");
  expect(k.shape(0) == n && k.shape(1) == kPage && k.shape(2) == heads, "k and v must be (pages, 64, kv heads, dim)");
  for (size_t i = 0; i < n; i++)
    expect(pages.data()[i] >= 0 && pages.data()[i] < static_cast<int>(zip.shape(0)), "pages: a page is outside zip");
  const Kernels& kernels = isa();
  const Unlocked unlocked(static_cast<double>(k.size()));
  for (size_t i = 0; i < n * heads; i++) {
    const size_t to = (i / heads * kPage * heads + i % heads) * dim;
    kernels.zip_open(zip.data() + (static_cast<size_t>(pages.data()[i / heads]) * heads + i % heads) * zip.shape(2), static_cast<int>(dim),
                     static_cast<int>(fine), k.data() + to, v.data() + to, static_cast<ptrdiff_t>(heads * dim));
  }
}

void zip_attend_(In<float, 3> q, Cache zip, Cache raw, In<int32_t, 1> slots, int64_t fine, In<int32_t, -1> tables, In<int32_t, 1> starts,
                 In<int32_t, -1> lo, In<int32_t, -1> hi, float scale, InOut<float, 3> out, std::optional<InOut<float, 2>> lse) {
  Look look = open_look(q, raw, KV::bf16, scale);
  expect_codes(zip, q.shape(2), fine);
  expect(zip.shape(1) == raw.shape(1), "raw and zip must have the same heads");
  expect_whole(slots, "slots");
  expect(slots.size() == zip.shape(0), "slots must have one entry per page");
  expect_out(q, out, lse);
  expect(tables.ndim() == 2 && lo.ndim() == 1, "tables must be (streams, pages), and lo and hi (rows,)");
  const Seen seen = open_batch(q.shape(0), zip.shape(0), zip.shape(1), tables, starts, lo, hi);
  for (size_t b = 0; b < seen.streams.size(); b++) {
    const int32_t* table = tables.data() + static_cast<ptrdiff_t>(b) * seen.stride;
    int begin = INT32_MAX, end = 0;
    for (int t = seen.streams[b].t0; t < seen.streams[b].t1; t++) {
      const int first = lo.data()[t], last = hi.data()[t];
      if (first >= last) continue;
      expect(first % kPage == 0 || slots.data()[table[first / kPage]] >= 0, "lo: a row sees a part of a page of codes");
      expect(last % kPage == 0 || slots.data()[table[last / kPage]] >= 0, "hi: a row sees a part of a page of codes");
      begin = std::min(begin, first / kPage), end = std::max(end, (last + kPage - 1) / kPage);
    }
    for (int p = begin; p < end; p++) expect(slots.data()[table[p]] < static_cast<int>(raw.shape(0)), "slots: a page is outside raw");
  }
  look.kind = KV::zip, look.pages = zip.data(), look.page_bytes = zip.shape(2);
  look.slots = slots.data(), look.raw = raw.data(), look.raw_bytes = raw.shape(2), look.fine = static_cast<int>(fine);
  look.table_step = seen.table_step, look.row_step = seen.row_step, look.head_step = seen.head_step;
  look.lo = lo.data(), look.hi = hi.data();
  const Unlocked unlocked(seen.tokens * look.group * look.dim);
  attend(isa(), look, seen.streams, tables.data(), seen.stride, out.data(), lse ? lse->data() : nullptr);
}

}  // namespace

void bind_zip(nb::module_& m) {
  m.def("zip_page_bytes", [](int64_t dim, int64_t fine) {
    expect(dim % 16 == 0 && dim > 0 && dim <= kMaxDim, "the head's dimension must be a multiple of 16 up to 256");
    expect(fine >= 0 && fine <= kPage && fine % 4 == 0, "fine must be a multiple of 4 up to 64");
    return zip_page_bytes(static_cast<int>(dim), static_cast<int>(fine));
  });
  m.def("zip_seal", zip_seal_);
  m.def("zip_open", zip_open_);
  m.def("zip_attend", zip_attend_, nb::arg("q"), nb::arg("zip"), nb::arg("raw"), nb::arg("slots"), nb::arg("fine"), nb::arg("tables"), nb::arg("starts"),
        nb::arg("lo"), nb::arg("hi"), nb::arg("scale"), nb::arg("out"), nb::arg("lse").none() = nb::none());
}

}  // namespace diastole
