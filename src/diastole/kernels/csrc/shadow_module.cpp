// The Python face of shadow.hpp.
#include "shadow.hpp"

#include "check.hpp"

namespace diastole {
namespace {

void recall_(In<float, 3> q, float scale, In<int32_t, 1> which, In<int32_t, 2> tables, In<int32_t, 1> pages, In<int32_t, 1> records,
             In<int32_t, 1> buffers, Cache marks, In<uint8_t, 2> a, In<uint8_t, 3> values, In<float, 3> basis, In<int32_t, 3> outliers,
             In<float, 2> rope, Cache buf, InOut<int32_t, 3> held, int first, InOut<int64_t, 3> at, InOut<int32_t, 2> missed) {
  const Look look = open_look(q, buf, KV::rows, scale);
  expect_whole(which, "which");
  expect_whole(tables, "tables");
  expect_whole(pages, "pages");
  expect_whole(records, "records");
  expect_whole(buffers, "buffers");
  expect_whole(marks, "marks");
  expect_whole(a, "a");
  expect_whole(values, "values");
  expect_whole(basis, "basis");
  expect_whole(outliers, "outliers");
  expect_whole(rope, "rope");
  expect_whole(held, "held");
  expect_whole(at, "at");
  expect_whole(missed, "missed");
  const size_t r = which.size(), dim = q.shape(2), heads = buf.shape(1), sealed = marks.shape(0), rank = basis.shape(1), chunks = held.shape(2);
  expect(dim % 32 == 0, "q: the last axis must be a multiple of 32");
  expect(tables.shape(0) == r && pages.size() == r && records.size() == r && buffers.size() == r, "tables, pages, records and buffers must have one entry per row");
  expect(marks.shape(1) == heads && marks.shape(2) == kChunksOfPage * dim * 2, "marks must be (sealed pages, kv heads, 8 landmarks of bfloat16)");
  expect(rank > 0 && rank <= kMaxRank && basis.shape(2) == heads * dim, "basis must be (records, rank up to 1024, kv heads * dim)");
  expect(a.shape(0) == sealed && a.shape(1) == kPage * rank * 2, "a must be (sealed pages, 64 rows of the rank in int16)");
  expect(values.shape(0) == sealed && values.shape(1) == heads && values.shape(2) == kPage * dim * 2, "values must be (sealed pages, kv heads, 64 rows of bfloat16)");
  expect(reinterpret_cast<uintptr_t>(marks.data()) % 2 == 0 && reinterpret_cast<uintptr_t>(a.data()) % 2 == 0, "marks and a must be aligned to 2 bytes");
  expect(outliers.shape(0) == basis.shape(0) && outliers.shape(1) == heads, "outliers must be (records, kv heads, chunks)");
  expect(rope.shape(1) % 2 == 0 && rope.shape(1) <= dim, "rope: it must be even, and no wider than a head");
  expect(chunks > 0 && held.shape(1) == heads, "held must be (buffers, kv heads, chunks)");
  const size_t per = (chunks + kChunksOfPage - 1) / kChunksOfPage;
  expect(first >= 0 && static_cast<size_t>(first) + held.shape(0) * per <= buf.shape(0), "first: the buffers lie outside the pages");
  expect(at.shape(0) == r && at.shape(1) == heads && missed.shape(0) == r && missed.shape(1) == heads, "at and missed must be (rows, kv heads)");
  expect(at.shape(2) > chunks * kChunk, "at: it has no room for the chunks and one token more");
  std::vector<bool> taken(held.shape(0));
  double work = 0;
  for (size_t i = 0; i < r; i++) {
    expect(which.data()[i] >= 0 && which.data()[i] < static_cast<int>(q.shape(0)), "which: a row is outside q");
    expect(records.data()[i] >= 0 && records.data()[i] < static_cast<int>(basis.shape(0)), "records: there is no such one");
    const int buffer = buffers.data()[i], n = pages.data()[i];
    expect(buffer >= 0 && buffer < static_cast<int>(held.shape(0)) && !taken[static_cast<size_t>(buffer)], "buffers: there is no such one, or two rows use it");
    taken[static_cast<size_t>(buffer)] = true;
    expect(n > 0 && n <= static_cast<int>(tables.shape(1)), "pages must be between 1 and the width of tables");
    expect(static_cast<size_t>(n) * kPage <= rope.shape(0), "rope: it has fewer positions than a row's pages");
    for (int p = 0; p < n; p++) {
      const int32_t page = tables.data()[i * tables.shape(1) + static_cast<size_t>(p)];
      expect(page >= 0 && page < static_cast<int>(sealed), "tables: a page id is out of range");
    }
    work += static_cast<double>(n) * kChunksOfPage * static_cast<double>(q.shape(1) * dim);
  }
  Shadows state;
  state.marks = reinterpret_cast<const uint16_t*>(marks.data()), state.a = reinterpret_cast<const int16_t*>(a.data());
  state.values = values.data(), state.basis = basis.data(), state.rope = rope.data(), state.outliers = outliers.data();
  state.pages = buf.data(), state.held = held.data(), state.page_bytes = look.page_bytes;
  state.dim = look.dim, state.kv_heads = look.kv_heads, state.group = look.group, state.rank = static_cast<int>(rank);
  state.rotated = static_cast<int>(rope.shape(1)), state.outlying = static_cast<int>(outliers.shape(2)), state.chunks = static_cast<int>(chunks);
  state.first = first;
  const Shadowed rows{which.data(), tables.data(), pages.data(), records.data(), buffers.data(), static_cast<int>(r), static_cast<int>(tables.shape(1))};
  const Unlocked unlocked(work);
  recall(isa(), state, rows, q.data(), q.stride(0), scale, at.data(), static_cast<int>(at.shape(2)), missed.data());
}

}  // namespace

void bind_shadow(nb::module_& m) { m.def("recall", recall_); }

}  // namespace diastole
