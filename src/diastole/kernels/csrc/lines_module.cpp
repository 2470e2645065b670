// The Python face of lines.hpp.
#include "lines.hpp"

#include "check.hpp"

namespace diastole {
namespace {

struct Asked {
  Look look;
  Seen seen;
};

Asked open_rows(const In<float, 3>& q, const Cache& buf, const std::string& fmt, const In<int32_t, 2>& tables, const In<int32_t, 1>& starts,
                const In<int32_t, 1>& lo, const In<int32_t, 1>& hi, float scale) {
  Asked asked{open_look(q, buf, kv_kind(fmt), scale), {}};
  expect_whole(tables, "tables");
  expect_whole(starts, "starts");
  expect_whole(lo, "lo");
  expect_whole(hi, "hi");
  const size_t rows = q.shape(0), streams = tables.shape(0), width = tables.shape(1);
  expect(lo.size() == rows && hi.size() == rows, "lo and hi must have one entry per row of q");
  expect(starts.size() == streams + 1 && starts.data()[0] == 0 && starts.data()[streams] == static_cast<int>(rows), "starts must run from 0 to the rows");
  asked.seen = {{}, static_cast<ptrdiff_t>(width), 0, 1, 0, 0};
  for (size_t b = 0; b < streams; b++) {
    const int t0 = starts.data()[b], t1 = starts.data()[b + 1];
    expect(t0 <= t1 && t1 <= static_cast<int>(rows), "starts must not decrease");
    int longest = 0;
    for (int t = t0; t < t1; t++) {
      const int64_t from = lo.data()[t], to = hi.data()[t];
      expect(0 <= from && from <= to && to <= static_cast<int64_t>(width) * kPage, "lo and hi must lie in order within the table");
      longest = std::max(longest, static_cast<int>(to));
      asked.seen.tokens += static_cast<double>(to - from);
    }
    for (int p = 0; p < ceil_div(longest, kPage); p++) {
      const int32_t id = tables.data()[b * width + static_cast<size_t>(p)];
      expect(id >= 0 && id < static_cast<int>(buf.shape(0)), "tables: a page id is out of range");
    }
    asked.seen.streams.push_back({t0, t1});
  }
  asked.look.row_step = 1;
  asked.look.lo = lo.data(), asked.look.hi = hi.data();
  return asked;
}

void masses_(In<float, 3> q, Cache buf, const std::string& fmt, In<int32_t, 2> tables, In<int32_t, 1> starts, In<int32_t, 1> lo,
             In<int32_t, 1> hi, float scale, InOut<float, 3> out) {
  const Asked asked = open_rows(q, buf, fmt, tables, starts, lo, hi, scale);
  expect_whole(out, "out");
  expect(out.shape(0) == tables.shape(0) && out.shape(1) == buf.shape(1), "out must be (streams, kv heads, tokens)");
  for (size_t i = 0; i < hi.size(); i++) expect(hi.data()[i] <= static_cast<int64_t>(out.shape(2)), "out has fewer tokens than a row sees");
  const Unlocked unlocked(asked.seen.tokens * static_cast<double>(q.shape(1) * q.shape(2)));
  masses(isa(), asked.look, asked.seen.streams, tables.data(), asked.seen.stride, out.data(), static_cast<int>(out.shape(2)));
}

template <class Bands, class Columns, class Counts>
void expect_lines(size_t blocks, size_t heads, const Bands& bands, const Columns& columns, const Counts& counts) {
  expect_whole(bands, "bands");
  expect_whole(columns, "columns");
  expect_whole(counts, "counts");
  expect(bands.shape(0) == blocks && bands.shape(1) == heads && bands.shape(2) > 0, "bands must be (blocks, heads, distances)");
  expect(columns.shape(0) == blocks && columns.shape(1) == heads, "columns must be (blocks, heads, tokens)");
  expect(counts.shape(0) == blocks && counts.shape(1) == heads, "counts must be (blocks, heads)");
}

void choose_lines_(In<float, 3> q, Cache buf, const std::string& fmt, In<int32_t, 2> tables, In<int32_t, 1> starts, In<int32_t, 1> lo,
                   In<int32_t, 1> hi, float scale, float share, In<int32_t, 1> first, int sink, InOut<uint8_t, 3> bands,
                   InOut<int32_t, 3> columns, InOut<int32_t, 2> counts, InOut<float, 2> covered) {
  const Asked asked = open_rows(q, buf, fmt, tables, starts, lo, hi, scale);
  expect_lines(tables.shape(0), q.shape(1), bands, columns, counts);
  expect_whole(first, "first");
  expect_whole(covered, "covered");
  expect(covered.shape(0) == tables.shape(0) && covered.shape(1) == q.shape(1), "covered must be (blocks, heads)");
  expect(first.size() == tables.shape(0), "first must have one entry per block");
  expect(sink >= 0, "sink must not be negative");
  for (size_t b = 0; b < first.size(); b++) {
    const int start = first.data()[b];
    expect(start >= 0 && start <= static_cast<int64_t>(columns.shape(2)), "columns has room for fewer tokens than lie before a block");
    for (int t = starts.data()[b]; t < starts.data()[b + 1]; t++) {
      expect(hi.data()[t] > start, "first: a row lies before its block");
      expect((hi.data()[t] - 1) / kPage < static_cast<int64_t>(bands.shape(2)), "bands has fewer distances than a row has pages");
    }
  }
  const Lines lines{first.data(), bands.data(), columns.data(), counts.data(), covered.data(), static_cast<int>(bands.shape(2)), static_cast<int>(columns.shape(2))};
  const Unlocked unlocked(asked.seen.tokens * static_cast<double>(q.shape(1) * q.shape(2)));
  choose_lines(isa(), asked.look, asked.seen.streams, tables.data(), asked.seen.stride, share, sink, lines);
}

void attend_lines_(In<float, 3> q, Cache buf, const std::string& fmt, In<int32_t, 2> tables, In<int32_t, 1> starts, In<int32_t, 1> hi,
                   float scale, InOut<uint8_t, 3> bands, InOut<int32_t, 3> columns, InOut<int32_t, 2> counts, InOut<float, 3> out,
                   std::optional<InOut<float, 2>> lse) {
  const Asked asked = open_rows(q, buf, fmt, tables, starts, hi, hi, scale);
  expect_out(q, out, lse);
  const size_t heads = q.shape(1), reach = bands.shape(2), width = columns.shape(2);
  expect_lines(tables.shape(0), heads, bands, columns, counts);
  double tokens = 0;
  for (size_t b = 0; b < tables.shape(0); b++) {
    const int t0 = starts.data()[b], t1 = starts.data()[b + 1];
    for (int t = t0; t < t1; t++) expect(hi.data()[t] > 0 && hi.data()[t] == hi.data()[t0] + t - t0, "hi must rise by one from row to row of a block");
    for (size_t h = 0; h < heads && t0 < t1; h++) {
      const size_t at = b * heads + h;
      const int n = counts.data()[at];
      expect(n >= 0 && n <= static_cast<int>(width), "counts must be between 0 and the width of columns");
      expect(bands.data()[at * reach] != 0, "bands: distance 0 must be in");
      const int32_t* columns_of = columns.data() + at * width;
      for (int i = 0; i < n; i++)
        expect(columns_of[i] >= 0 && columns_of[i] < hi.data()[t0] && (i == 0 || columns_of[i - 1] < columns_of[i]), "columns must rise and lie before their block");
      tokens += static_cast<double>(t1 - t0) * n;
    }
  }
  const Lines lines{nullptr, bands.data(), columns.data(), counts.data(), nullptr, static_cast<int>(reach), static_cast<int>(width)};
  const Unlocked unlocked((tokens + static_cast<double>(q.shape(0) * kPage)) * static_cast<double>(q.shape(2)));
  attend_lines(isa(), asked.look, asked.seen.streams, tables.data(), asked.seen.stride, lines, out.data(), lse ? lse->data() : nullptr);
}

}  // namespace

void bind_lines(nb::module_& m) {
  m.def("masses", masses_);
  m.def("choose_lines", choose_lines_);
  m.def("attend_lines", attend_lines_, nb::arg("q"), nb::arg("buf"), nb::arg("fmt"), nb::arg("tables"), nb::arg("starts"), nb::arg("hi"),
        nb::arg("scale"), nb::arg("bands"), nb::arg("columns"), nb::arg("counts"), nb::arg("out"), nb::arg("lse").none() = nb::none());
}

}  // namespace diastole
