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

// Scores of rows t0..t1 over n tokens, which become softmax weights row by row: (rows, wide), wide = n in whole splits.
class Weights {
 public:
  const int rows, wide;

  Weights(const Kernels& isa, const Look& look, int g, int t0, int t1, int n)
      : rows((t1 - t0) * look.group), wide(ceil_div(n, kSplit) * kSplit), isa_(isa), at_(room().get(static_cast<size_t>(rows) * wide)) {
    const int most = std::max(1, kTile / look.group);
    for (int split = 0; split * kSplit < n; split++)
      for (int t = t0; t < t1; t += most)
        isa.score_rows(look, g, t, std::min(t + most, t1), split, row((t - t0) * look.group) + split * kSplit, wide);
  }
  float* row(int r) const { return at_ + static_cast<ptrdiff_t>(r) * wide; }

  // A row's scores become weights, up to a factor, which is returned.
  float open(int r) const {
    const double sum = isa_.soften(row(r), wide);
    return sum == 0 ? 0.f : static_cast<float>(1 / sum);
  }

 private:
  static Scratch<float>& room() {
    static thread_local Scratch<float> kept;
    return kept;
  }
  const Kernels& isa_;
  float* at_;
};

int longest(const Look& look, const Span& rows, int g) {
  int n = 0;
  for (int t = rows.t0; t < rows.t1; t++) n = std::max(n, look.to(t, g));
  return n;
}

constexpr int kWorth = kPage / 2;  // tokens of a page that are better looked at with all of the page than one by one

// The lines of one block for one query head, while they are chosen.
class Choice {
 public:
  Choice(const Kernels& isa, const Weights& weights, const int32_t* hi, int first, int sink, int reach, uint8_t* bands)
      : w_(weights), hi_(hi), first_(first), reach_(reach), bands_(bands), taken_(static_cast<size_t>(first)) {
    std::fill_n(bands_, reach_, uint8_t{0});
    bands_[0] = 1;
    std::fill_n(taken_.begin(), sink, uint8_t{1});
    std::vector<float> columns(static_cast<size_t>(w_.wide)), band(static_cast<size_t>(reach)), pages(static_cast<size_t>(w_.wide / kPage));
    for (int r = 0; r < w_.rows; r++) {
      const float factor = w_.open(r);
      float sure = take(w_.row(r) + own_page(r) * kPage, kPage);
      sure += take(w_.row(r), sink);
      covered_ += static_cast<double>(sure * factor);
      isa.tally(w_.row(r), w_.wide, factor, columns.data(), pages.data());
      for (int d = 1; d <= own_page(r); d++) band[static_cast<size_t>(d)] += pages[static_cast<size_t>(own_page(r) - d)];
    }
    offers_.reserve(static_cast<size_t>(first + reach));
    for (int c = sink; c < first_; c++) offer(columns[static_cast<size_t>(c)], c);
    for (int d = 1; d < reach_; d++) offer(band[static_cast<size_t>(d)] / kPage, -d);
    std::make_heap(offers_.begin(), offers_.end(), less);
  }

  float covered() const { return static_cast<float>(covered_ / w_.rows); }

  // Adds the best line until enough is covered. What a line brings only shrinks as others are taken, so the first by old
  // gains is the best as soon as its own gain is found to be new.
  void until(float share) {
    while (covered_ < static_cast<double>(share) * w_.rows && !offers_.empty()) {
      std::pop_heap(offers_.begin(), offers_.end(), less);
      const Offer best = offers_.back();
      offers_.pop_back();
      if (best.bands == bands_taken_ && (best.line >= 0 || best.columns == columns_taken_)) {
        if (best.line < 0) take_band(-best.line);
        else take_column(best.line);
      } else {
        offer(best.line < 0 ? of_band(-best.line) / kPage : of_column(best.line), best.line);
        std::push_heap(offers_.begin(), offers_.end(), less);
      }
    }
    for (int page = 0; (page + 1) * kPage <= first_; page++) {
      const auto begin = taken_.begin() + page * kPage;
      if (std::count(begin, begin + kPage, 1) < kWorth) continue;
      for (int c = page * kPage; c < (page + 1) * kPage; c++)
        if (!taken_[static_cast<size_t>(c)]) take_column(c);
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
    float gain;          // new weight per token that is looked at
    int line;            // a column, or a band's distance with a minus
    int bands, columns;  // so many had been taken when the gain was found
  };
  static bool less(const Offer& a, const Offer& b) { return a.gain < b.gain || (a.gain == b.gain && a.line < b.line); }

  void offer(float gain, int line) {
    if (gain > 0) offers_.push_back({gain, line, bands_taken_, columns_taken_});
  }
  int own_page(int r) const { return (hi_[r] - 1) / kPage; }

  static float take(float* at, int n) {
    float sum = 0;
    for (int c = 0; c < n; c++) sum += at[c], at[c] = 0;
    return sum;
  }
  void take_band(int distance) {
    for (int r = 0; r < w_.rows; r++)
      if (const int page = own_page(r) - distance; page >= 0) covered_ += static_cast<double>(take(w_.row(r) + page * kPage, kPage));
    bands_[distance] = 1;
    bands_taken_++;
  }
  void take_column(int column) {
    for (int r = 0; r < w_.rows; r++) covered_ += static_cast<double>(take(w_.row(r) + column, 1));
    taken_[static_cast<size_t>(column)] = 1;
    columns_taken_++;
  }
  float of_band(int distance) const {
    float lanes[16] = {}, sum = 0;
    for (int r = 0; r < w_.rows; r++) {
      const int page = own_page(r) - distance;
      if (page < 0) continue;
      const float* at = w_.row(r) + page * kPage;
      for (int c = 0; c < kPage; c += 16)
        for (int i = 0; i < 16; i++) lanes[i] += at[c + i];
    }
    for (float lane : lanes) sum += lane;
    return sum;
  }
  float of_column(int column) const {
    float sum = 0;
    for (int r = 0; r < w_.rows; r++) sum += w_.row(r)[column];
    return sum;
  }

  const Weights& w_;  // what lies on lines that are taken is set to 0
  const int32_t* hi_;
  int first_, reach_;
  uint8_t* bands_;
  std::vector<uint8_t> taken_;  // columns
  std::vector<Offer> offers_;
  double covered_ = 0;
  int bands_taken_ = 0, columns_taken_ = 0;
};

}  // namespace

void masses(const Kernels& isa, const Look& look, const std::vector<Span>& streams, const int32_t* tables, ptrdiff_t table_stride,
            float* out, int n) {
  static thread_local Scratch<float> kept;
  const int most = std::max(1, kTile / look.group);
  for (size_t i = 0; i < streams.size(); i++) {
    const Span& rows = streams[i];
    int seen = 0;
    for (int g = 0; g < look.kv_heads; g++) seen = std::max(seen, longest(look, rows, g));
    // All heads at once, piece by piece, so that all threads have work: scores, then rows, then columns.
    const int each = (rows.t1 - rows.t0) * look.group, all = look.kv_heads * each, splits = ceil_div(seen, kSplit), wide = splits * kSplit;
    float* to = out + static_cast<ptrdiff_t>(i) * look.kv_heads * n;
    std::fill_n(to, static_cast<ptrdiff_t>(look.kv_heads) * n, 0.f);
    float* scores = kept.get(static_cast<size_t>(all) * static_cast<size_t>(wide + 1));
    float* by = scores + static_cast<ptrdiff_t>(all) * wide;  // 1 / a row's sum
    Pool::get().each(splits * look.kv_heads, [&](int task) {
      const int g = task % look.kv_heads, split = task / look.kv_heads;
      Look own = look;
      own.table = tables + static_cast<ptrdiff_t>(i) * table_stride;
      for (int t = rows.t0; t < rows.t1; t += most)
        isa.score_rows(own, g, t, std::min(t + most, rows.t1), split,
                       scores + static_cast<ptrdiff_t>(g * each + (t - rows.t0) * look.group) * wide + split * kSplit, wide);
    });
    Pool::get().each(all, [&](int row) {
      const double sum = isa.soften(scores + static_cast<ptrdiff_t>(row) * wide, wide);
      by[row] = sum == 0 ? 0.f : static_cast<float>(1 / sum);
    });
    Pool::get().each(splits * look.kv_heads, [&](int task) {
      const int g = task % look.kv_heads, first = task / look.kv_heads * kSplit;
      float sums[kSplit] = {}, pages[kSplit / kPage];
      for (int row = g * each; row < (g + 1) * each; row++) isa.tally(scores + static_cast<ptrdiff_t>(row) * wide + first, kSplit, by[row], sums, pages);
      if (first < n) std::copy_n(sums, std::min(kSplit, n - first), to + static_cast<ptrdiff_t>(g) * n + first);
    });
  }
}

void choose_lines(const Kernels& isa, const Look& look, const std::vector<Span>& streams, const int32_t* tables, ptrdiff_t table_stride,
                  float share, int sink, const Lines& lines) {
  const int heads = look.kv_heads * look.group, blocks = static_cast<int>(streams.size());
  Pool::get().each(blocks * heads, [&](int i) {
    const int b = i / heads, first = lines.first[b];
    const Span& rows = streams[static_cast<size_t>(b)];
    const HeadLook own(look, tables + b * table_stride, i % heads);
    const Weights weights(isa, own.look, own.g, rows.t0, rows.t1, longest(look, rows, own.g));
    Choice choice(isa, weights, look.hi + rows.t0, first, std::min(sink, first), lines.reach, lines.bands + static_cast<ptrdiff_t>(i) * lines.reach);
    choice.until(share);
    lines.counts[i] = choice.columns(lines.columns + static_cast<ptrdiff_t>(i) * lines.width);
    lines.covered[i] = choice.covered();
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
    const int32_t *column = lines.columns + at * lines.width, *end = column + lines.counts[at];
    for (int p = 0; p <= page; p++) {
      const int32_t* from = column;
      while (column < end && *column < (p + 1) * kPage) column++;
      if ((page - p < lines.reach && bands[page - p]) || column - from == kPage)
        pages_.push_back(table[p]);
      else
        for (; from < column; from++) tokens_.push_back(static_cast<int64_t>(table[p]) * kPage + *from % kPage);
    }
    for (int i = 0; i < rows.t1 - rows.t0; i++)
      hi_[i] = (static_cast<int>(pages_.size()) - 1) * kPage + (look.hi[rows.t0 + i] - 1) % kPage + 1;
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
      Look picked = look;
      picked.kind = multiplied(look.kind), picked.page_bytes = kv_page_bytes(picked.kind, look.dim);
      uint8_t* copy = room.get(kSplit / kPage * picked.page_bytes);
      isa.fetch(look, own_.g, tokens_.data() + at, hi);
      isa.gather(look, own_.g, tokens_.data() + at, hi, copy);
      picked.q += static_cast<ptrdiff_t>(own_.g) * look.dim;
      picked.kv_heads = 1, picked.pages = copy, picked.table = places, picked.table_step = 0;
      picked.lo = &lo, picked.hi = &hi, picked.row_step = 0, picked.head_step = 0;
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
