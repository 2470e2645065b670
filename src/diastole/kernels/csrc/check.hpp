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
  if (name == "q8") return Weight::q8;
  if (name == "bf16") return Weight::bf16;
  if (name == "f32") return Weight::f32;
  fail("unknown weight format " + name + "; there are f32, bf16, q8, q4");
}
inline KV kv_kind(const std::string& name) {
  if (name == "bf16") return KV::bf16;
  if (name == "int8") return KV::int8;
  if (name == "f32") return KV::f32;
  fail("unknown key/value format " + name + "; there are f32, bf16, int8");
}

using Bytes = In<uint8_t, 1>;

// Bytes of a matrix, whose shape may come from anywhere.
inline size_t expect_packed(Weight w, int n, int k) {
  expect(n > 0 && k > 0, "weight: n and k must be positive");
  const int whole = w == Weight::q8 || w == Weight::q4 ? kGroup : w == Weight::bf16 ? 2 : 1;
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
// tables (B, P), starts (B+1,), lo and hi (T,); returns the rows of each stream.
inline std::vector<Span> open_batch(size_t rows, size_t pages, const In<int32_t, 2>& tables, const In<int32_t, 1>& starts,
                                    const In<int32_t, 1>& lo, const In<int32_t, 1>& hi) {
  expect_whole(tables, "tables");
  expect_whole(starts, "starts");
  expect_whole(lo, "lo");
  expect_whole(hi, "hi");
  expect(lo.size() == rows && hi.size() == rows, "lo and hi must have one entry per row of q");
  expect(starts.size() == tables.shape(0) + 1, "starts must have one entry more than tables has rows");
  const int width = static_cast<int>(tables.shape(1));
  expect(starts.data()[0] == 0 && starts.data()[tables.shape(0)] == static_cast<int>(rows),
         "starts must run from 0 to the rows");
  std::vector<Span> streams;
  for (size_t b = 0; b < tables.shape(0); b++) {
    const int t0 = starts.data()[b], t1 = starts.data()[b + 1];
    expect(t0 <= t1, "starts must not decrease");
    expect(t1 <= static_cast<int>(rows), "starts must run from 0 to the rows");
    int first = INT32_MAX, last = 0;
    for (int r = t0; r < t1; r++) {
      expect(lo.data()[r] >= 0, "lo must not be negative");
      if (lo.data()[r] >= hi.data()[r]) continue;  // sees nothing
      first = std::min(first, lo.data()[r]);
      last = std::max(last, hi.data()[r]);
    }
    expect(last <= static_cast<int64_t>(width) * kPage, "hi: a row looks beyond its stream's pages");
    const int32_t* table = tables.data() + b * width;
    for (int p = first / kPage; static_cast<int64_t>(p) * kPage < last; p++)  // what lies before a window may be gone
      expect(table[p] >= 0 && table[p] < static_cast<int>(pages), "tables: a page id is out of range");
    streams.push_back({t0, t1});
  }
  return streams;
}

}  // namespace diastole
