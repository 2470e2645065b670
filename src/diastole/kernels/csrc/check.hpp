// Checks of arguments that come from Python, shared by the files that bind operators.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "arrays.hpp"
#include "ops.hpp"

namespace nb = nanobind;

namespace diastole {

template <class T, int D>
using In = Array<T, D, false>;
template <class T, int D>
using InOut = Array<T, D, true>;

inline void expect(bool ok, const char* what) {
  if (!ok) fail(what);
}

// Lets other Python threads run meanwhile.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  // Only for long calls: after a short one, getting the lock back may cost more than the call.
  explicit Unlocked(double work) : state_(work >= kShort ? PyEval_SaveThread() : nullptr) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() {
    if (state_ == nullptr) return;
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      // Before 3.14, a daemon thread that wants the lock while the interpreter ends is ended by unwinding, which would
      // abort the process at the next noexcept frame. It has nothing left to do: let it wait for the end here.
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }

 private:
  static constexpr double kShort = 128 * 1024;  // elements or multiply-adds: some microseconds
  PyThreadState* state_;
};

// Last axes contiguous; the first may have any stride.
template <class A>
void expect_rows(const A& a, const char* name) {
  a.named(name);
  if (a.size() == 0) return;  // whose strides mean nothing
  int64_t want = 1;
  for (size_t i = a.ndim(); i-- > 1;) {
    if (a.shape(i) > 1 && a.stride(i) != want) fail(std::string(name) + ": all axes but the first must be contiguous");
    want *= static_cast<int64_t>(a.shape(i));
  }
}
template <class A>
void expect_whole(const A& a, const char* name) {
  a.named(name);
  if (a.size() == 0) return;
  expect_rows(a, name);
  const int64_t row = static_cast<int64_t>(a.size() / a.shape(0));
  if (a.ndim() && a.shape(0) > 1 && a.stride(0) != row) fail(std::string(name) + " must be contiguous");
}

inline std::atomic<const Kernels*> active{nullptr};
inline const Kernels& isa() {
  const Kernels* k = active.load();
  if (k == nullptr) active.store(k = choose(nullptr));
  return *k;
}

inline Weight weight_kind(const std::string& name) {
  if (name == "q4") return Weight::q4;
  if (name == "q4s") return Weight::q4s;
  if (name == "q4b") return Weight::q4b;
  if (name == "q8") return Weight::q8;
  if (name == "bf16") return Weight::bf16;
  if (name == "f32") return Weight::f32;
  fail("unknown weight format " + name + "; there are f32, bf16, q8, q4, q4s, q4b");
}
inline KV kv_kind(const std::string& name) {
  if (name == "bf16") return KV::bf16;
  if (name == "int8") return KV::int8;
  if (name == "f32") return KV::f32;
  if (name == "rows") return KV::rows;
  if (name == "rows8") return KV::rows8;
  fail("unknown key/value format " + name + "; there are f32, bf16, int8, rows, rows8");
}

using Bytes = In<uint8_t, 1>;

// Bytes of a matrix, whose shape may come from anywhere.
inline size_t expect_packed(Weight w, int n, int k) {
  expect(n > 0 && k > 0, "weight: n and k must be positive");
  const int whole = w == Weight::f32 ? 1 : w == Weight::bf16 ? 2 : kGroup;
  expect(k % whole == 0, "weight: k does not fit its format");
  expect(n <= INT32_MAX - kRows && static_cast<double>(n) * k < 0x1p48, "weight: it is too large");
  return packed_bytes(w, n, k);
}

inline Matrix matrix(const std::string& kind, int n, int k, const Bytes& data) {
  const Weight w = weight_kind(kind);
  expect_whole(data, "weight");
  expect(data.size() == expect_packed(w, n, k), "weight: the data has not the size of its shape");
  expect(reinterpret_cast<uintptr_t>(data.data()) % 4 == 0, "weight: the data must be aligned to 4 bytes");
  return {w, n, k, data.data()};
}

using Cache = InOut<uint8_t, 3>;  // (pages, kv heads, page bytes)

inline void expect_cache(const Cache& buf, KV kind, size_t dim) {
  expect_whole(buf, "buf");
  expect(reinterpret_cast<uintptr_t>(buf.data()) % 4 == 0, "buf must be aligned to 4 bytes");
  expect(dim % 16 == 0 && dim > 0 && dim <= kMaxDim, "the head's dimension must be a multiple of 16 up to 256");
  expect(buf.shape(2) == kv_page_bytes(kind, static_cast<int>(dim)), "buf: its pages have not the size of this format");
}

// The attention of a batch, checked: every page that a row looks at is one of the cache's.
//
// pages: how many each head has. tables (B, P), or (B, kv heads, P) where heads look at pages of their own; starts (B+1,);
// lo and hi (T,) or, by heads too, (T, kv heads).
struct Seen {
  std::vector<Span> streams;      // their rows
  ptrdiff_t stride, table_step;   // of tables: from stream to stream, from head to head
  ptrdiff_t row_step, head_step;  // of lo and hi
  double tokens;                  // that all rows and heads see together
};

template <class Tables, class Bound>
Seen open_batch(size_t rows, const std::vector<size_t>& pages, const Tables& tables, const In<int32_t, 1>& starts, const Bound& lo, const Bound& hi) {
  const size_t kv_heads = pages.size();
  expect_whole(tables, "tables");
  expect_whole(starts, "starts");
  expect_whole(lo, "lo");
  expect_whole(hi, "hi");
  expect(tables.ndim() == 2 || (tables.ndim() == 3 && tables.shape(1) == kv_heads), "tables must be (streams, pages) or (streams, kv heads, pages)");
  const bool own = tables.ndim() == 3, parted = lo.ndim() == 2;
  expect(lo.ndim() == hi.ndim() && (lo.ndim() == 1 || (parted && lo.shape(1) == kv_heads && hi.shape(1) == kv_heads)), "lo and hi must be (rows,) or (rows, kv heads)");
  expect(lo.shape(0) == rows && hi.shape(0) == rows, "lo and hi must have one entry per row of q");
  const size_t count = tables.shape(0);
  expect(starts.size() == count + 1, "starts must have one entry more than tables has rows");
  const ptrdiff_t width = static_cast<ptrdiff_t>(tables.shape(own ? 2 : 1)), heads = static_cast<ptrdiff_t>(kv_heads);
  expect(starts.data()[0] == 0 && starts.data()[count] == static_cast<int>(rows), "starts must run from 0 to the rows");
  Seen seen{{}, own ? heads * width : width, own ? width : 0, parted ? heads : 1, parted ? 1 : 0, 0};
  for (size_t b = 0; b < count; b++) {
    const int t0 = starts.data()[b], t1 = starts.data()[b + 1];
    expect(t0 <= t1, "starts must not decrease");
    expect(t1 <= static_cast<int>(rows), "starts must run from 0 to the rows");
    for (ptrdiff_t g = 0; g < (own || parted ? heads : 1); g++) {
      int first = INT32_MAX, last = 0;
      for (int r = t0; r < t1; r++) {
        const ptrdiff_t at = r * seen.row_step + g * seen.head_step;
        expect(lo.data()[at] >= 0, "lo must not be negative");
        if (lo.data()[at] >= hi.data()[at]) continue;  // sees nothing
        first = std::min(first, lo.data()[at]);
        last = std::max(last, hi.data()[at]);
        seen.tokens += (hi.data()[at] - lo.data()[at]) * (own || parted ? 1.0 : static_cast<double>(kv_heads));
      }
      expect(last <= static_cast<int64_t>(width) * kPage, "hi: a row looks beyond its stream's pages");
      const int32_t* table = tables.data() + static_cast<ptrdiff_t>(b) * seen.stride + g * seen.table_step;
      for (int p = first / kPage; static_cast<int64_t>(p) * kPage < last; p++)  // what lies before a window may be gone
        expect(table[p] >= 0 && table[p] < static_cast<int64_t>(pages[static_cast<size_t>(g)]), "tables: a page id is out of range");
    }
    seen.streams.push_back({t0, t1});
  }
  return seen;
}

template <class Tables, class Bound>
Seen open_batch(size_t rows, size_t pages, size_t kv_heads, const Tables& tables, const In<int32_t, 1>& starts, const Bound& lo, const Bound& hi) {
  return open_batch(rows, std::vector<size_t>(kv_heads, pages), tables, starts, lo, hi);
}

// The attention of q over a cache, but for what its rows see.
inline Look open_look(const In<float, 3>& q, const Cache& buf, KV kind, float scale) {
  expect_rows(q, "q");
  expect_whole(buf, "buf");
  const size_t heads = q.shape(1), dim = q.shape(2), kv_heads = buf.shape(1);
  expect_cache(buf, kind, dim);
  expect(q.shape(0) * heads <= INT32_MAX, "q has too many rows");
  expect(kv_heads > 0 && heads % kv_heads == 0, "q: heads must be a multiple of the key/value heads");
  expect(heads / kv_heads <= kTile, "q: more than 48 query heads share one key/value head");
  return {q.data(), q.stride(0), buf.data(), kind, static_cast<int>(dim), static_cast<int>(kv_heads), static_cast<int>(heads / kv_heads),
          buf.shape(2), nullptr, 0, nullptr, nullptr, 1, 0, scale, nullptr};
}

inline void expect_out(const In<float, 3>& q, const InOut<float, 3>& out, const std::optional<InOut<float, 2>>& lse) {
  expect_whole(out, "out");
  for (size_t i = 0; i < 3; i++) expect(out.shape(i) == q.shape(i), "out must have the shape of q");
  if (!lse) return;
  expect_whole(*lse, "lse");
  expect(lse->shape(0) == q.shape(0) && lse->shape(1) == q.shape(1), "lse must be (rows, heads)");
}

}  // namespace diastole
