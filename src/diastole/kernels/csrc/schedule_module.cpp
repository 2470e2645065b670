// The Python face of schedule.hpp.
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "check.hpp"
#include "pool.hpp"

namespace diastole {
namespace {

constexpr int kMostWorkers = 1 << 14, kMostSplit = 1 << 16;

Schedule schedule(const std::string& name, int split, int workers, int parts, size_t room) {
  const Schedule::Planner plan = Schedule::named(name);
  if (plan == nullptr) fail("unknown schedule " + name + "; there are lean, shares, heads, queue, fixed");
  expect(split >= kPage && split <= kMostSplit && split % kPage == 0, "split must be a multiple of 64 from 64 to 65536");
  expect(workers >= 0 && workers <= kMostWorkers, "workers must be between 0 and 16384");
  expect(parts >= 1 && parts <= kMostWorkers, "parts must be between 1 and 16384");
  return {plan, workers > 0 ? workers : Pool::get().threads(), parts, split, room};
}

void attend_by(In<float, 3> q, Cache buf, const std::string& fmt, In<int32_t, -1> tables, In<int32_t, 1> starts,
               In<int32_t, -1> lo, In<int32_t, -1> hi, float scale, InOut<float, 3> out, std::optional<InOut<float, 2>> lse,
               const std::string& name, int split, int workers, int parts, std::optional<InOut<double, 2>> spent) {
  Look look = open_look(q, buf, kv_kind(fmt), scale);
  expect_out(q, out, lse);
  const Seen seen = open_batch(q.shape(0), buf.shape(0), buf.shape(1), tables, starts, lo, hi);
  look.table_step = seen.table_step, look.row_step = seen.row_step, look.head_step = seen.head_step;
  look.lo = lo.data(), look.hi = hi.data();
  const Schedule how = schedule(name, split, workers, parts, kRoom);
  if (spent) {
    expect_whole(*spent, "spent");
    expect(static_cast<int>(spent->shape(0)) == how.workers && spent->shape(1) == 3, "spent must be (workers, 3)");
  }
  std::vector<Spent> all(spent ? static_cast<size_t>(how.workers) : 0);
  {
    const Unlocked unlocked(seen.tokens * look.group * look.dim);
    attend(isa(), look, seen.streams, tables.data(), seen.stride, how, out.data(), lse ? lse->data() : nullptr, spent ? all.data() : nullptr);
  }
  for (size_t w = 0; w < all.size(); w++) {
    const double row[] = {all[w].seconds, all[w].merging, all[w].splits};
    std::copy_n(row, 3, spent->data() + 3 * w);
  }
}

std::vector<std::tuple<int, int, int, int>> plan(const std::string& name, In<int32_t, 1> rows, In<int32_t, 1> lo, In<int32_t, 1> hi,
                                                 int split, int workers, int parts, size_t room) {
  const Schedule how = schedule(name, split, workers, parts, room);
  expect_whole(rows, "rows");
  expect_whole(lo, "lo");
  expect_whole(hi, "hi");
  expect(rows.size() == lo.size() && rows.size() == hi.size(), "rows, lo and hi must be equally long");
  std::vector<Output> outputs;
  for (size_t i = 0; i < rows.size(); i++) {
    expect(rows.data()[i] > 0 && rows.data()[i] <= kTile, "rows must be between 1 and 48");
    expect(lo.data()[i] >= 0 && hi.data()[i] <= 1 << 30, "lo and hi must be between 0 and 2^30");
    outputs.push_back({rows.data()[i], lo.data()[i], hi.data()[i], split});
  }
  Plan made;
  how.plan(outputs, how, made);
  std::vector<std::tuple<int, int, int, int>> all;
  for (int w = 0; w < made.workers(); w++)
    for (int i = made.shares[static_cast<size_t>(w)]; i < made.shares[static_cast<size_t>(w) + 1]; i++) {
      const Item& item = made.items[static_cast<size_t>(i)];
      all.emplace_back(w, item.output, item.s0, item.s1);
    }
  return all;
}

}  // namespace

void bind_schedule(nb::module_& m) {
  m.def("attend_by", attend_by, nb::arg("q"), nb::arg("buf"), nb::arg("fmt"), nb::arg("tables"), nb::arg("starts"), nb::arg("lo"),
        nb::arg("hi"), nb::arg("scale"), nb::arg("out"), nb::arg("lse").none(), nb::arg("schedule"), nb::arg("split"),
        nb::arg("workers"), nb::arg("parts") = 1, nb::arg("spent").none() = nb::none());
  m.def("plan", plan, nb::arg("schedule"), nb::arg("rows"), nb::arg("lo"), nb::arg("hi"), nb::arg("split"), nb::arg("workers"),
        nb::arg("parts") = 1, nb::arg("room") = kRoom, "(worker, output, first split, one behind the last) for outputs of so many rows that see tokens lo to hi.");
}

}  // namespace diastole
