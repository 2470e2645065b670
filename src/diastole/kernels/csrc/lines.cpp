#include "lines.hpp"

#include <algorithm>
#include <cmath>

#include "memory.hpp"
#include "pool.hpp"

namespace diastole {
namespace {

// One query head, as a look of its own at its key/value head's pages.
struct HeadLook {
  Look look;
  int g;
  HeadLook(const Look& all, const int32_t* table, int head) : look(all), g(head / all.group) {
    look.q += static_cast<ptrdiff_t>(head - g) * look.dim;  // a group of one: head g of it is this head
    look.group = 1;
    look.table = table;
  }
};

// Softmax weights of rows t0..t1 over n tokens: (rows, wide), wide = n in whole splits, and each row's sum is 1.
class Weights {
 public:
  const int rows, wide;
  float* at;

  Weights(const Kernels& isa, const Look& look, int g, int t0, int t1, int n)
      : rows((t1 - t0) * look.group), wide(ceil_div(n, kSplit) * kSplit), at(room().get(static_cast<size_t>(rows) * wide)) {
    const int most = std::max(1, kTile / look.group);
    for (int split = 0; split * kSplit < n; split++)
      for (int t = t0; t < t1; t += most)
        isa.score_rows(look, g, t, std::min(t + most, t1), split, row((t - t0) * look.group) + split * kSplit, wide);
    for (int r = 0; r < rows; r++) {
      const float top = isa.most(row(r), wide);
      if (top == kUnseen) {  // it sees nothing
        std::fill_n(row(r), wide, 0.f);
        continue;
      }
      const float inverse = static_cast<float>(1 / isa.weigh(row(r), wide, 1.f, top, row(r)));
      for (int c = 0; c < wide; c++) row(r)[c] *= inverse;
    }
  }
  float* row(int r) const { return at + static_cast<ptrdiff_t>(r) * wide; }

 private:
  static Scratch<float>& room() {
    static thread_local Scratch<float> kept;
    return kept;
  }
};

int longest(const Look& look, const Span& rows, int g) {
  int n = 0;
  for (int t = rows.t0; t < rows.t1; t++) n = std::max(n, look.to(t, g));
  return n;
}

// The lines of one block for one query head, while they are chosen.
class Choice {
 public:
  Choice(const Weights& weights, const int32_t* hi, int first, int reach, uint8_t* bands)
      : w_(weights), hi_(hi), first_(first), reach_(reach), bands_(bands), taken_(static_cast<size_t>(first)) {
    std::fill_n(bands_, reach_, uint8_t{0});
    take_band(0);
  }

  double covered() const { return covered_ / w_.rows; }

  void take_band(int distance) {
    for (int r = 0; r < w_.rows; r++) {
      const int page = own_page(r) - distance;
      if (page < 0) continue;
      float* at = w_.row(r) + page * kPage;
      covered_ += of_page(at, page);
      std::fill_n(at, kPage, 0.f);
    }
    bands_[distance] = 1;
    version_++;
  }
  void take_column(int column) {
    taken_[static_cast<size_t>(column)] = 1;
    covered_ += of_column(column);
    changes_++;
  }

  // Adds the best line until enough is covered. What a line brings only shrinks as others are taken, so the first of all
  // by old gains is the best as soon as its gain is found to be new.
  void until(double share, int sink) {
    std::vector<float> columns(static_cast<size_t>(first_));
    for (int r = 0; r < w_.rows; r++)
      for (int c = 0; c < first_; c++) columns[static_cast<size_t>(c)] += w_.row(r)[c];
    for (int c = sink; c < first_; c++) offer(static_cast<double>(columns[static_cast<size_t>(c)]), c);
    for (int d = 1; d < reach_; d++) offer(of_band(d) / kPage, -d);
    std::make_heap(heap_.begin(), heap_.end(), less);
    while (covered_ < share * w_.rows && !heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), less);
      Offer best = heap_.back();
      heap_.pop_back();
      const bool fresh = best.line < 0 ? best.seen == version_ && best.change == changes_ : best.seen == version_;
      if (!fresh) {
        offer(best.line < 0 ? of_band(-best.line) / kPage : of_column(best.line), best.line);
        std::push_heap(heap_.begin(), heap_.end(), less);
        continue;
      }
      if (best.line < 0) take_band(-best.line);
      else take_column(best.line);
    }
  }

  int columns(int32_t* to) const {
    int n = 0;
    for (int c = 0; c < first_; c++)
      if (taken_[static_cast<size_t>(c)]) to[n++] = c;
    return n;
  }

 private:
  struct Offer {
    double gain;  // new weight per token that is looked at
    int line;     // a column, or a band's distance with a minus
    int seen, change;
  };
  static bool less(const Offer& a, const Offer& b) { return a.gain < b.gain || (a.gain == b.gain && a.line < b.line); }

  void offer(double gain, int line) {
    if (gain > 0) heap_.push_back({gain, line, version_, changes_});
  }
  int own_page(int r) const { return (hi_[r] - 1) / kPage; }
  double of_page(const float* at, int page) const {
    double sum = 0;
    for (int c = 0; c < kPage; c++)
      if (page * kPage + c >= first_ || !taken_[static_cast<size_t>(page * kPage + c)]) sum += static_cast<double>(at[c]);
    return sum;
  }
  double of_band(int distance) const {
    double sum = 0;
    for (int r = 0; r < w_.rows; r++)
      if (const int page = own_page(r) - distance; page >= 0) sum += of_page(w_.row(r) + page * kPage, page);
    return sum;
  }
  double of_column(int column) const {
    double sum = 0;
    for (int r = 0; r < w_.rows; r++) sum += static_cast<double>(w_.row(r)[column]);
    return sum;
  }

  const Weights& w_;  // what lies on chosen bands is set to 0
  const int32_t* hi_;
  int first_, reach_;
  uint8_t* bands_;
  std::vector<uint8_t> taken_;
  std::vector<Offer> heap_;
  double covered_ = 0;
  int version_ = 0, changes_ = 0;  // bands and columns taken: who was weighed before may bring less now
};

}  // namespace

void masses(const Kernels& isa, const Look& look, const std::vector<Span>& streams, const int32_t* tables, ptrdiff_t table_stride,
            float* out, int n) {
  const int heads = look.kv_heads, blocks = static_cast<int>(streams.size());
  Pool::get().each(blocks * heads, [&](int i) {
    const Span& rows = streams[static_cast<size_t>(i / heads)];
    const int g = i % heads, seen = longest(look, rows, g);
    Look own = look;
    own.table = tables + i / heads * table_stride;
    float* to = out + static_cast<ptrdiff_t>(i) * n;
    std::fill_n(to, n, 0.f);
    if (seen == 0) return;
    const Weights weights(isa, own, g, rows.t0, rows.t1, seen);
    for (int r = 0; r < weights.rows; r++)
      for (int c = 0; c < seen; c++) to[c] += weights.row(r)[c];
  });
}

void choose_lines(const Kernels& isa, const Look& look, const std::vector<Span>& streams, const int32_t* tables, ptrdiff_t table_stride,
                  float share, int sink, const Lines& lines) {
  const int heads = look.kv_heads * look.group, blocks = static_cast<int>(streams.size());
  Pool::get().each(blocks * heads, [&](int i) {
    const int b = i / heads, first = lines.first[b];
    const Span& rows = streams[static_cast<size_t>(b)];
    const HeadLook own(look, tables + b * table_stride, i % heads);
    const Weights weights(isa, own.look, own.g, rows.t0, rows.t1, longest(look, rows, own.g));
    Choice choice(weights, look.hi + rows.t0, first, lines.reach, lines.bands + static_cast<ptrdiff_t>(i) * lines.reach);
    for (int c = 0; c < std::min(sink, first); c++) choice.take_column(c);
    choice.until(static_cast<double>(share), sink);
    lines.counts[i] = choice.columns(lines.columns + static_cast<ptrdiff_t>(i) * lines.width);
    lines.covered[i] = static_cast<float>(choice.covered());
  });
}

namespace {

// Rows t0..t1 of one block that lie on one page, and what their head attends to.
class Run {
 public:
  Run(const Look& look, const Span& rows, const int32_t* table, const Lines& lines, int block, int head)
      : own_(look, table, head), rows_(rows), heads_(look.kv_heads * look.group), head_(head) {
    const ptrdiff_t at = static_cast<ptrdiff_t>(block) * heads_ + head;
    const uint8_t* bands = lines.bands + at * lines.reach;
    const int page = (look.hi[rows.t0] - 1) / kPage;
    for (int p = std::max(0, page - lines.reach + 1); p <= page; p++)
      if (bands[page - p]) pages_.push_back(table[p]);
    for (int i = 0; i < rows.t1 - rows.t0; i++)
      hi_[i] = (static_cast<int>(pages_.size()) - 1) * kPage + (look.hi[rows.t0 + i] - 1) % kPage + 1;
    const int32_t* columns = lines.columns + at * lines.width;
    for (int i = 0; i < lines.counts[at]; i++) {
      const int c = columns[i], distance = page - c / kPage;
      if (distance >= lines.reach || !bands[distance]) tokens_.push_back(static_cast<int64_t>(table[c / kPage]) * kPage + c % kPage);
    }
  }

  void attend(const Kernels& isa, float* out, float* lse) {
    static thread_local Scratch<uint8_t> room;
    static thread_local Scratch<Partial> partials;
    static const int32_t places[kSplit / kPage] = {0, 1, 2, 3, 4, 5, 6, 7}, zeros[kPage] = {};
    const int rows = rows_.t1 - rows_.t0, tokens = static_cast<int>(tokens_.size()), pages = static_cast<int>(pages_.size());
    Partial *whole = partials.get(2 * kPage), *part = whole + kPage;
    bool begun = false;
    const auto add = [&](const Look& look, int g, int split) {
      Partial* to = begun ? part : whole;
      for (int t = 0; t < rows; t += kTile) isa.attend(look, g, t, std::min(t + kTile, rows), split, to + t);
      for (int t = 0; begun && t < rows; t++) isa.merge(whole[t], part[t], look.dim);
      begun = true;
    };
    Look look = own_.look;
    look.q += rows_.t0 * look.q_stride;
    for (int at = 0; at < tokens; at += kSplit) {  // single tokens, brought together on pages
      const int32_t lo = 0, hi = std::min(kSplit, tokens - at);
      uint8_t* copy = room.get(kSplit / kPage * look.page_bytes);
      isa.gather(look, own_.g, tokens_.data() + at, hi, copy);
      Look picked = look;
      picked.q += static_cast<ptrdiff_t>(own_.g) * look.dim;
      picked.kv_heads = 1, picked.pages = copy, picked.table = places, picked.table_step = 0;
      picked.lo = &lo, picked.hi = &hi, picked.row_step = 0, picked.head_step = 0;
      if (picked.kind == KV::rows) picked.kind = KV::bf16;
      add(picked, 0, 0);
    }
    look.table = pages_.data(), look.table_step = 0;
    look.lo = zeros, look.hi = hi_, look.row_step = 1, look.head_step = 0;
    for (int split = 0; split * kSplit < pages * kPage; split++) add(look, own_.g, split);
    for (int i = 0; i < rows; i++) {
      const size_t row = static_cast<size_t>(rows_.t0 + i) * static_cast<size_t>(heads_) + static_cast<size_t>(head_);
      const float inverse = whole[i].sum == 0.f ? 0.f : 1.f / whole[i].sum;
      for (int d = 0; d < look.dim; d++) out[row * static_cast<size_t>(look.dim) + static_cast<size_t>(d)] = whole[i].out[d] * inverse + 0.f;
      if (lse != nullptr) lse[row] = whole[i].sum == 0.f ? -INFINITY : whole[i].most + std::log(whole[i].sum);
    }
  }

 private:
  HeadLook own_;
  Span rows_;
  int heads_, head_;
  std::vector<int32_t> pages_;
  std::vector<int64_t> tokens_;  // not on any of them
  int32_t hi_[kPage];
};

}  // namespace

void attend_lines(const Kernels& isa, const Look& look, const std::vector<Span>& blocks, const int32_t* tables, ptrdiff_t table_stride,
                  const Lines& lines, float* out, float* lse) {
  struct Piece {
    Span rows;
    int block;
  };
  std::vector<Piece> pieces;  // rows on one page
  for (size_t b = 0; b < blocks.size(); b++)
    for (int t = blocks[b].t0, end; t < blocks[b].t1; t = end) {
      end = std::min(blocks[b].t1, t + kPage - (look.hi[t] - 1) % kPage);
      pieces.push_back({{t, end}, static_cast<int>(b)});
    }
  const int heads = look.kv_heads * look.group;
  Pool::get().each(static_cast<int>(pieces.size()) * heads, [&](int i) {
    const Piece& piece = pieces[static_cast<size_t>(i / heads)];
    Run(look, piece.rows, tables + piece.block * table_stride, lines, piece.block, i % heads).attend(isa, out, lse);
  });
}

}  // namespace diastole
