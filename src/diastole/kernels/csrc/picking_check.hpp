// Checks of what is chosen by, for the files that bind it.
#pragma once
#include "check.hpp"
#include "picking.hpp"

namespace diastole {

// Channels of each head: every one of them a dimension of it, and no more than a buffer of keys has room for.
inline void expect_channels(const In<int32_t, 2>& channels, size_t heads, size_t head_dim, size_t dim) {
  expect_whole(channels, "channels");
  expect(channels.shape(0) == heads && channels.shape(1) <= dim, "channels must be (kv heads, at most the buffer's dimension)");
  for (size_t i = 0; i < channels.size(); i++)
    expect(channels.data()[i] >= 0 && channels.data()[i] < static_cast<int64_t>(head_dim), "channels: one is outside a head");
}

inline Alone alone(int bits) {
  expect(bits == 16 || bits == 4, "bits must be 16 or 4");
  return bits == 16 ? Alone::bf16 : Alone::labels;
}

// The dimension of a buffer of keys alone.
inline size_t expect_keys(const Cache& buf, Alone form) {
  expect_whole(buf, "buf");
  const size_t dim = form == Alone::bf16 ? buf.shape(2) / (kPage * 2) : (buf.shape(2) - std::min(buf.shape(2), size_t{kPage * 4})) / (kPage / 2);
  expect(dim % 16 == 0 && dim > 0 && dim <= kMaxDim && buf.shape(2) == alone_page_bytes(form, static_cast<int>(dim)), "buf: its pages have not the size of keys alone");
  return dim;
}

inline void expect_rows_within(const In<int64_t, 1>& rows, size_t pages) {
  const int64_t limit = static_cast<int64_t>(pages) * kPage;
  for (size_t i = 0; i < rows.size(); i++) expect(rows.data()[i] >= 0 && rows.data()[i] < limit, "rows: a row is outside the pages");
}

// Rows that choose tokens: which of `rows`, the tables of their streams, what they see and how much they get. Returns how
// many tokens they see together.
inline double expect_choosers(const In<int32_t, 1>& which, const In<int32_t, 2>& tables, const In<int32_t, 1>& lo, const In<int32_t, 1>& hi,
                              const In<int32_t, 1>& most, size_t rows, size_t pages) {
  expect_whole(which, "which");
  expect_whole(tables, "tables");
  expect_whole(lo, "lo");
  expect_whole(hi, "hi");
  expect_whole(most, "most");
  const size_t r = which.size(), width = tables.shape(1);
  expect(tables.shape(0) == r && lo.size() == r && hi.size() == r && most.size() == r, "tables, lo, hi and most must have one entry for each of which");
  double tokens = 0;
  for (size_t i = 0; i < r; i++) {
    const int from = lo.data()[i], to = hi.data()[i];
    expect(which.data()[i] >= 0 && which.data()[i] < static_cast<int64_t>(rows), "which: a row is outside q");
    expect(from >= 0 && from <= to, "lo must be between 0 and hi");
    expect(to <= static_cast<int64_t>(width) * kPage, "hi: a row looks beyond its stream's pages");
    expect(most.data()[i] >= 0, "most must not be negative");
    for (int p = from / kPage; p * kPage < to; p++) {
      const int32_t id = tables.data()[i * width + static_cast<size_t>(p)];
      expect(id >= 0 && id < static_cast<int64_t>(pages), "tables: a page id is out of range");
    }
    tokens += to - from;
  }
  return tokens;
}

// Rows that choose pages, r of them: see pick_pages.
inline void expect_bounded(size_t r, size_t kv_heads, const Cache& index, const In<int32_t, 2>& tables, const In<int32_t, 1>& blocks,
                           const In<int32_t, 1>& heads, int first, int recent, const InOut<int32_t, 3>& places, const In<int32_t, 1>& runs,
                           const InOut<int32_t, 3>& to) {
  expect_whole(tables, "tables");
  expect_whole(blocks, "blocks");
  expect_whole(heads, "heads");
  expect_whole(places, "places");
  expect_whole(runs, "runs");
  expect_whole(to, "pages");
  const size_t width = tables.shape(1), k = places.shape(2);
  expect(tables.shape(0) == r && blocks.size() == r, "tables and blocks must have one entry per row of q");
  expect(heads.size() == kv_heads, "heads must have one entry per key/value head");
  for (size_t g = 0; g < kv_heads; g++)
    expect(heads.data()[g] >= 0 && heads.data()[g] <= static_cast<int64_t>(index.shape(1)), "heads: one has no place in the index");
  expect(places.shape(0) == r && places.shape(1) == kv_heads, "places must be (rows, kv heads, pages)");
  expect(first >= 0 && recent >= 1 && static_cast<size_t>(first) + static_cast<size_t>(recent) <= k, "places must have room for the first and recent pages");
  expect(runs.size() == r, "runs must have one entry per row of q");
  expect(to.shape(1) == kv_heads && to.shape(2) >= k, "pages must be (runs, kv heads, as many as places or more)");
  for (size_t i = 0; i < r; i++) {
    const int last = blocks.data()[i];
    expect(runs.data()[i] >= 0 && runs.data()[i] < static_cast<int>(to.shape(0)), "runs: one is outside pages");
    expect(last >= 0 && last < static_cast<int>(width), "blocks must lie within tables");
    expect(static_cast<size_t>(last) >= k, "blocks: a row must have more pages than are chosen");
    for (int p = 0; p <= last; p++) {
      const int32_t id = tables.data()[i * width + static_cast<size_t>(p)];
      expect(id >= 0 && id < static_cast<int>(index.shape(0)), "tables: a page id is out of range");
    }
  }
}

}  // namespace diastole
