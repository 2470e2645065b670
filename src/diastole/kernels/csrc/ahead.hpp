// The pages that a batch will look at in the next layer, fetched while this one's matrices are multiplied.
#pragma once
#include <algorithm>
#include <atomic>
#include <vector>

#include "check.hpp"
#include "kernels.hpp"
#include "ops.hpp"

namespace diastole {

class PagesAhead {
 public:
  PagesAhead() : errands_{nullptr, nullptr, kLine, 0, &next_} {}
  PagesAhead(const PagesAhead&) = delete;
  PagesAhead& operator=(const PagesAhead&) = delete;

  const Errands* errands() const { return &errands_; }

  // A batch: of each stream with few rows, the pages up to where these see. With many it is not memory that is waited for.
  void open(const std::vector<Span>& streams, const int32_t* tables, ptrdiff_t stride, const int32_t* hi) {
    none();
    pages_.clear();
    for (const Span& rows : streams) {
      int seen = 0;
      for (int t = rows.t0; t < rows.t1; t++) seen = std::max(seen, hi[t]);
      if (rows.t1 - rows.t0 <= kFewRows) pages_.insert(pages_.end(), tables, tables + ceil_div(seen, kPage));
      tables += stride;
    }
  }

  // From now on those of this layer.
  void fetch(const Cache& layer) {
    errands_ = {layer.data(), pages_.data(), layer.shape(1) * layer.shape(2), 0, &next_};
    if (errands_.each % kLine) return;  // pages would not begin with lines
    next_.store(0, std::memory_order_relaxed);
    errands_.lines = static_cast<uint32_t>(std::min(pages_.size() * errands_.each, kFetched) / kLine);
  }
  void none() { errands_.lines = 0; }

 private:
  static constexpr int kFewRows = 16;
  static constexpr size_t kLine = 64;
  static constexpr size_t kFetched = size_t{8} << 20;  // bytes: more would not stay in the caches until it is read

  std::vector<int32_t> pages_;
  std::atomic<uint32_t> next_{0};
  Errands errands_;
};

}  // namespace diastole
