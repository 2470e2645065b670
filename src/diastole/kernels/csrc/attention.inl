// Attention over pages. Included by isa.inl after pages.inl.
//
// A query row walks the pages it sees in order, and splits at fixed places are merged in order, so its
// result does not depend on the rows beside it. A token it does not see has weight exactly 0.

#if defined(__AVX512F__)
constexpr int kQueries = 6, kColumns = 4;  // query rows, and vectors of 16 dimensions, that fit the registers
#else
constexpr int kQueries = 3, kColumns = 2;
#endif

// One query row, scaled, in the form that the page's kind multiplies.
struct Query {
  alignas(64) float f[kMaxDim];
  union {
    alignas(64) bf16 h[kMaxDim];
    alignas(64) int8_t q[kMaxDim];
  };
  float scale;    // int8: what q is multiplied with
  int32_t total;  //       the sum of q
};

// What a row's weights have come to, lane by lane: added up across once, behind the last page.
struct Lanes {
  alignas(64) float sum[16];
};

// A query row on a page: it sees tokens lo <= j < hi of the page's 64, and there is at least one.
struct Seat {
  const Query* query;
  Partial* partial;
  Lanes* lanes;
  int lo, hi;
};

inline void open_query(KV kind, const float* q, float scale, int dim, Query& out) {
  for (int i = 0; i < dim; i += 16) store(out.f + i, load(q + i) * scale);
  if (kind == KV::bf16)
    for (int i = 0; i < dim; i += 16) store_bf16(out.h + i, load(out.f + i));
  if (kind == KV::int8) {
    out.scale = int8_scale(out.f, dim);
    to_int8(out.f, dim, out.scale, out.q);
    int32_t total = 0;
    for (int i = 0; i < dim; i++) total += out.q[i];
    out.total = total;
  }
}

// The page that comes next, fetched while this one is used: a whole page at a time, so only into the second cache.
struct Ahead {
  ptrdiff_t way;  // from this page to that one; 0: none
  int tokens;     // of which so many are looked at
  ptrdiff_t at(int token) const { return token < tokens ? way : 0; }
};

// ---- scores of R rows against blocks first..last of a page's 64 tokens: s (R, 64)


template <KV KIND, int R>
inline void scores(const Halves<const uint8_t>& page, int dim, int first, int last, Ahead next, const Seat* seats, float* s) {
  for (int block = first; block < last; block++) {
    const ptrdiff_t ahead = next.at(block * 16);
    if constexpr (KIND == KV::int8) {
      const uint8_t* k = page.k + static_cast<size_t>(block) * dim * 16;
      Ints acc[R];
      for (int r = 0; r < R; r++) acc[r] = splat(signed_start(seats[r].query->total));
      for (int i = 0; i < dim; i += 4) {
        const Ints v = load_words(k + i * 16);
        prefetch(k + i * 16 + ahead);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) acc[r] = dot4_signed(acc[r], v, static_cast<int32_t>(word(seats[r].query->q + i)));
      }
      const Floats k_scale = load(reinterpret_cast<const float*>(page.scales) + block * 16);
      for (int r = 0; r < R; r++)
        store(s + r * kPage + block * 16, to_float(acc[r]) * (k_scale * seats[r].query->scale));
    } else if constexpr (KIND == KV::bf16) {
      const uint8_t* k = page.k + static_cast<size_t>(block) * dim * 32;
      Floats even[R], odd[R];  // two chains per row, to hide the latency of the products
      for (int r = 0; r < R; r++) even[r] = odd[r] = splat(0.f);
      for (int i = 0; i < dim; i += 4) {
        const Ints v = load_words(k + i * 32), u = load_words(k + i * 32 + 64);
        prefetch(k + i * 32 + ahead);
        prefetch(k + i * 32 + 64 + ahead);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
          even[r] = dot2(even[r], v, word(seats[r].query->h + i));
          odd[r] = dot2(odd[r], u, word(seats[r].query->h + i + 2));
        }
      }
      for (int r = 0; r < R; r++) store(s + r * kPage + block * 16, even[r] + odd[r]);
    } else {
      const float* k = reinterpret_cast<const float*>(page.k) + static_cast<size_t>(block) * dim * 16;
      Floats acc[R];
      for (int r = 0; r < R; r++) acc[r] = splat(0.f);
      for (int i = 0; i < dim; i++) {
        const Floats v = load(k + i * 16);
        prefetch(reinterpret_cast<const uint8_t*>(k + i * 16) + ahead);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) acc[r] = fma(v, splat(seats[r].query->f[i]), acc[r]);
      }
      for (int r = 0; r < R; r++) store(s + r * kPage + block * 16, acc[r]);
    }
  }
}

// ---- softmax of one row over one page, continued: s becomes the weights, and what came before shrinks

inline Ints seen_lanes(int block, int lo, int hi) {  // of 16 tokens of the page
  const Ints token = load_words(kIota) + block * 16;
  return less(token, splat(hi)) & less(splat(lo - 1), token);
}

// So much may a row's scores exceed what they are taken from before everything is scaled to the new largest: weights are
// then at most e^6, and after the first pages nothing has to be scaled at all, nor a row's largest score to be found.
constexpr float kSlack = 6.f;

// e^x for x up to 80. Exactly 1 at 0, NaN for NaN.
template <KV KIND>
inline Floats weight_of(Floats x) {
#if defined(__AVX512F__)
  if constexpr (KIND != KV::f32) {  // to 3e-6: these weights are rounded to bf16 or bytes
    const Floats t = x * 1.44269504f;
    const __m512 n = _mm512_roundscale_ps((__m512)t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Floats f = t - (Floats)n;
    Floats p = splat(9.582818486e-3f);
    p = fma(p, f, splat(5.590637028e-2f));
    p = fma(p, f, splat(2.402409911e-1f));
    p = fma(p, f, splat(6.931241751e-1f));
    p = fma(p, f, splat(1.f));
    return (Floats)_mm512_scalef_ps((__m512)p, n);
  }
#endif
  return exp(x);
}

// A row's largest score has grown: what came before shrinks.
template <KV KIND>
inline void shrink(const Seat& seat, float most, int dim) {
  Partial& p = *seat.partial;
  const Floats by = weight_of<KIND>(splat(p.most - most));
  for (int i = 0; i < dim; i += 16) store(p.out + i, load(p.out + i) * by);
  store(seat.lanes->sum, load(seat.lanes->sum) * by);
  p.most = most;
}

template <KV KIND>
inline void soften(float* s, const Seat& seat, int dim) {
  const bool all = seat.lo == 0 && seat.hi == kPage;
  Floats v[4];
  for (int b = 0; b < 4; b++) {
    v[b] = load(s + b * 16);
    if (!all) v[b] = select(seen_lanes(b, seat.lo, seat.hi), v[b], splat(kUnseen));
  }
  const Floats most = max(max(v[1], v[0]), max(v[3], v[2]));
  if (any(less(splat(seat.partial->most + kSlack), most))) shrink<KIND>(seat, largest(most), dim);
  Floats e[4];
  for (int b = 0; b < 4; b++) {
    e[b] = weight_of<KIND>(v[b] - seat.partial->most);
    if (!all) e[b] = select(seen_lanes(b, seat.lo, seat.hi), e[b], splat(0.f));
    store(s + b * 16, e[b]);
  }
  store(seat.lanes->sum, load(seat.lanes->sum) + ((e[0] + e[1]) + (e[2] + e[3])));
}

// ---- weighted values

// Weights of R rows over a page in the form that its kind multiplies.
template <KV KIND, int R>
struct Weights {
  const float* f;                 // (R, 64)
  alignas(64) bf16 h[R][kPage];   // bf16
  alignas(64) uint8_t q[R][kPage];  // int8: weight times the token's scale, in steps of
  float step[R];                  // this
};

template <KV KIND, int R>
inline void open_weights(const Halves<const uint8_t>& page, const float* s, Weights<KIND, R>& w) {
  w.f = s;
  if constexpr (KIND == KV::bf16)
    for (int i = 0; i < R * kPage; i += 32) store_bf16(&w.h[0][0] + i, load(s + i), load(s + i + 16));
  if constexpr (KIND == KV::int8) {
    const float* v_scales = reinterpret_cast<const float*>(page.scales) + kPage;
    for (int r = 0; r < R; r++) {
      Floats x[4];
      Ints most = splat(0);
      for (int b = 0; b < 4; b++) {
        const Floats weight = load(s + r * kPage + b * 16);
        // What a page holds where this row does not look may be anything, also NaN.
        x[b] = select(less(splat(0.f), weight), weight * load(v_scales + b * 16), weight);
        most = max(most, magnitude(x[b]));
      }
      const float top = as_float(largest(most)), inverse = top > 0 ? 255.f / top : 0.f;
      for (int b = 0; b < 4; b++) narrow8(round_to_int(x[b] * inverse), w.q[r] + b * 16);
      w.step[r] = top / 255.f;
    }
  }
}

// Adds the tokens lo..hi of a page, N vectors of 16 dimensions from `first` on, to R rows.
template <KV KIND, int R, int N>
inline void add_values(const Halves<const uint8_t>& page, int dim, int first, int lo, int hi, Ahead next,
                       const Weights<KIND, R>& w, const Seat* seats) {
  using Sum = std::conditional_t<KIND == KV::int8, Ints, Floats>;
  Sum acc[R][N];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < N; c++) {
      if constexpr (KIND == KV::int8)
        acc[r][c] = splat(0);
      else
        acc[r][c] = load(seats[r].partial->out + first + c * 16);
    }
  if constexpr (KIND == KV::f32) {
    for (int t = lo; t < hi; t++) {
      const ptrdiff_t ahead = next.at(t);
      const float* v = reinterpret_cast<const float*>(page.v) + static_cast<size_t>(t) * dim + first;
      Floats x[N];
      for (int c = 0; c < N; c++) {
        x[c] = load(v + c * 16);
        prefetch(reinterpret_cast<const uint8_t*>(v + c * 16) + ahead);
      }
#pragma GCC unroll 6
      for (int r = 0; r < R; r++)
        for (int c = 0; c < N; c++) acc[r][c] = fma(x[c], splat(w.f[r * kPage + t]), acc[r][c]);
    }
  } else if constexpr (KIND == KV::bf16) {
    for (int t = lo & ~1; t < hi; t += 2) {
      const ptrdiff_t ahead = next.at(t);
      const uint8_t* v = page.v + (static_cast<size_t>(t) * dim + first * 2) * 2;
      // The other half of a pair at the edge may be anything, also NaN.
      const int32_t keep = static_cast<int32_t>((t < lo ? 0u : 0xffffu) | (t + 1 < hi ? 0xffff0000u : 0u));
      Ints x[N];
      for (int c = 0; c < N; c++) {
        x[c] = load_words(v + c * 64) & keep;
        prefetch(v + c * 64 + ahead);
      }
#pragma GCC unroll 6
      for (int r = 0; r < R; r++)
        for (int c = 0; c < N; c++) acc[r][c] = dot2(acc[r][c], x[c], word(w.h[r] + t));
    }
  } else {
    for (int t = lo & ~3; t < hi; t += 4) {
      const ptrdiff_t ahead = next.at(t);
      const uint8_t* v = page.v + static_cast<size_t>(t) * dim + first * 4;
      Ints x[N];
      for (int c = 0; c < N; c++) {
        x[c] = load_words(v + c * 64);
        prefetch(v + c * 64 + ahead);
      }
#pragma GCC unroll 6
      for (int r = 0; r < R; r++)
        for (int c = 0; c < N; c++) acc[r][c] = dot4_unsigned(acc[r][c], x[c], word(w.q[r] + t));
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < N; c++) {
      float* out = seats[r].partial->out + first + c * 16;
      if constexpr (KIND == KV::int8)
        store(out, fma(to_float(acc[r][c]), splat(w.step[r]), load(out)));
      else
        store(out, acc[r][c]);
    }
}

template <KV KIND, int R, int N>
inline void add_columns(const Halves<const uint8_t>& page, int dim, int first, int lo, int hi, Ahead next,
                        const Weights<KIND, R>& w, const Seat* seats) {
  for (; first + 16 * N <= dim; first += 16 * N) add_values<KIND, R, N>(page, dim, first, lo, hi, next, w, seats);
  if constexpr (N > 1) add_columns<KIND, R, N / 2>(page, dim, first, lo, hi, next, w, seats);
}

// ---- rows on a page

template <KV KIND, int R>
inline void visit(const Halves<const uint8_t>& page, int dim, Ahead next, const Seat* seats) {
  alignas(64) float s[R * kPage];
  int lo = kPage, hi = 0;
  for (int r = 0; r < R; r++) {
    lo = seats[r].lo < lo ? seats[r].lo : lo;
    hi = seats[r].hi > hi ? seats[r].hi : hi;
  }
  scores<KIND, R>(page, dim, lo / 16, (hi + 15) / 16, next, seats, s);
  for (int r = 0; r < R; r++) soften<KIND>(s + r * kPage, seats[r], dim);
  Weights<KIND, R> w;
  open_weights<KIND, R>(page, s, w);
  add_columns<KIND, R, kColumns>(page, dim, 0, lo, hi, next, w, seats);
}

template <KV KIND, int R>
void visit_all(const Halves<const uint8_t>& page, int dim, Ahead next, const Seat* seats, int n) {
  for (; n >= R; n -= R, seats += R) {
    visit<KIND, R>(page, dim, next, seats);
    next.way = 0;  // the first rows have fetched it
  }
  if constexpr (R > 1)
    if (n > 0) visit_all<KIND, R - 1>(page, dim, next, seats, n);
}

// The scores of what a row does not see of a split.
inline void hide(float* s, int lo, int hi) {
  const int from = lo > 0 ? lo : 0, to = hi < kSplit ? hi : kSplit;
  for (int c = 0; c < kSplit; c++) {
    if (c == from && from < to) c = to;
    if (c < kSplit) s[c] = kUnseen;
  }
}

#include "attention_codes.inl"

#if defined(__AMX_TILE__)
#include "attention_amx.inl"
#endif

template <KV KIND>
void walk(const Look& look, int g, int t0, int t1, int split, Partial* partials) {
  Query queries[kTile];
  Lanes lanes[kTile];
  int lo[kTile], hi[kTile], first = look.split_tokens, last = 0;
  const int dim = look.dim, n = (t1 - t0) * look.group;
  for (int i = 0; i < n; i++) {
    const int t = t0 + i / look.group, h = g * look.group + i % look.group;
    open_query(KIND, look.q + t * look.q_stride + static_cast<ptrdiff_t>(h) * dim, look.scale, dim, queries[i]);
    lo[i] = look.from(t, g) - split * look.split_tokens;
    hi[i] = look.to(t, g) - split * look.split_tokens;
    if (lo[i] < hi[i]) {
      first = lo[i] < first ? lo[i] : first;
      last = hi[i] > last ? hi[i] : last;
    }
    partials[i].most = kUnseen;
    store(lanes[i].sum, splat(0.f));
    for (int d = 0; d < dim; d += 16) store(partials[i].out + d, splat(0.f));
  }
  if (first < 0) first = 0;
  if (last > look.split_tokens) last = look.split_tokens;
  const auto place = [&](int page) { return look.page(split * (look.split_tokens / kPage) + page, g); };
  for (int page = first / kPage; page * kPage < last; page++) {
    Seat seats[kTile];
    int seated = 0;
    for (int i = 0; i < n; i++) {
      const int a = lo[i] - page * kPage, b = hi[i] - page * kPage;
      const Seat seat = {queries + i, partials + i, lanes + i, a > 0 ? a : 0, b < kPage ? b : kPage};
      if (seat.lo < seat.hi) seats[seated++] = seat;
    }
    if constexpr (KIND == KV::bf16) {
      const int here = split * (look.split_tokens / kPage) + page;
      const uint8_t* raw = look.kind == KV::zip ? look.unsealed(here, g) : nullptr;
      if (raw != nullptr) {
        visit_all<KIND, kQueries>(open_page(KIND, raw, dim), dim, Ahead{0, 0}, seats, seated);
        continue;
      }
      if (look.kind == KV::zip) {
        alignas(64) uint8_t codes[kPage * kMaxDim * 4];
        Measures m;
        fetch_page((page + 1) * kPage < last ? place(page + 1) : look.next, look.page_bytes);
        const Parts parts(dim, look.fine);
        open_measures(place(page), parts, dim, m);
        open_codes(place(page), parts, dim, look.fine, codes);
        visit_all_codes<kQueries>(open_page(KV::bf16, static_cast<const uint8_t*>(codes), dim), m, dim, seats, seated);
        continue;
      }
    }
    const uint8_t* at = place(page);
    alignas(64) uint8_t room[KIND == KV::f32 ? 1 : kPage * kMaxDim * 4];
    if constexpr (KIND != KV::f32) at = formed(look.kind, at, last - page * kPage, dim, room);
    const int left = last - (page + 1) * kPage;
    const uint8_t* after = left > 0 ? place(page + 1) : look.next;
    const Ahead next = {after != nullptr ? after - at : 0, left > 0 ? left : kPage};
    visit_all<KIND, kQueries>(open_page(KIND, at, dim), dim, next, seats, seated);
  }
  for (int i = 0; i < n; i++) partials[i].sum = sum(load(lanes[i].sum));
}

void attend(const Look& look, int g, int t0, int t1, int split, Partial* partials) {
#if defined(__AMX_TILE__)
  if ((multiplied(look.kind) == KV::bf16 || look.kind == KV::zip) && fits_tiles(look.dim)) return walk_tiles(look, g, t0, t1, split, partials);
#endif
  switch (look.kind) {
    case KV::f32: return walk<KV::f32>(look, g, t0, t1, split, partials);
    case KV::bf16:
    case KV::rows:
    case KV::zip: return walk<KV::bf16>(look, g, t0, t1, split, partials);
    case KV::int8:
    case KV::rows8: return walk<KV::int8>(look, g, t0, t1, split, partials);
  }
}

void merge(Partial& whole, const Partial& part, int dim) {
  const float m = whole.most > part.most ? whole.most : part.most;
  const Floats a = exp(splat(whole.most - m)), b = exp(splat(part.most - m));
  float keep[16], add[16];
  store(keep, a);
  store(add, b);
  whole.sum = whole.sum * keep[0] + part.sum * add[0];
  whole.most = m;
  for (int i = 0; i < dim; i += 16) store(whole.out + i, fma(load(part.out + i), b, load(whole.out + i) * a));
}

// ---- scores alone, for who chooses what is attended to

// Rows that see the same tokens of a page: s (n, stride), from the page's token 0 on.
template <KV KIND, int R>
void score_all(const Halves<const uint8_t>& page, int dim, Ahead next, const Seat* seats, int n, float* s, ptrdiff_t stride) {
  const int lo = seats->lo, hi = seats->hi;
  for (; n >= R; n -= R, seats += R, s += R * stride) {
    alignas(64) float here[R * kPage];
    scores<KIND, R>(page, dim, lo / 16, (hi + 15) / 16, next, seats, here);
    for (int r = 0; r < R; r++) std::memcpy(s + r * stride + lo, here + r * kPage + lo, sizeof(float) * static_cast<size_t>(hi - lo));
    next.way = 0;  // the first rows have fetched it
  }
  if constexpr (R > 1)
    if (n > 0) score_all<KIND, R - 1>(page, dim, next, seats, n, s, stride);
}

template <KV KIND>
void score_split(const Look& look, int g, int t, int split, float* s, ptrdiff_t stride) {
  Query queries[kTile];
  Seat seats[kTile];
  const int dim = look.dim, n = look.group;
  for (int i = 0; i < n; i++)
    open_query(KIND, look.q + t * look.q_stride + static_cast<ptrdiff_t>(g * n + i) * dim, look.scale, dim, queries[i]);
  const int lo = look.from(t, g) - split * kSplit, hi = look.to(t, g) - split * kSplit;
  const int first = lo > 0 ? lo : 0, last = hi < kSplit ? hi : kSplit;
  const auto place = [&](int page) { return look.page(split * (kSplit / kPage) + page, g); };
  for (int page = first / kPage; page * kPage < last; page++) {
    const int a = first - page * kPage, b = last - page * kPage, from = a > 0 ? a : 0, to = b < kPage ? b : kPage;
    const uint8_t *at = place(page), *after = (page + 1) * kPage < last ? place(page + 1) : nullptr;
    Ahead next{0, kPage};
    alignas(64) uint8_t room[KIND == KV::f32 ? 1 : kPage * kMaxDim * 2 + 2 * kPage * sizeof(float)];
    if (look.kind == KIND) {
      if (after != nullptr) next.way = after - at;
    } else {
      fetch_keys(look.kind, after, kPage, dim);
      at = form_keys(look.kind, at, to, dim, room);
    }
    for (int i = 0; i < n; i++) seats[i] = {queries + i, nullptr, nullptr, from, to};
    score_all<KIND, kQueries>(open_page(KIND, at, dim), dim, next, seats, n, s + page * kPage, stride);
  }
}

void score(const Look& look, int g, int t, int split, float* s, ptrdiff_t stride) {
  switch (look.kind) {
    case KV::f32: return score_split<KV::f32>(look, g, t, split, s, stride);
    case KV::bf16:
    case KV::rows: return score_split<KV::bf16>(look, g, t, split, s, stride);
    case KV::zip: return;  // nobody asks for them
    case KV::int8:
    case KV::rows8: return score_split<KV::int8>(look, g, t, split, s, stride);
  }
}

// The largest score that a row's heads of a group give each token of a split that it sees, for all key/value heads in turn
// on every page: so a page's keys of all heads are read one after the other, as they lie.
void score_best(const Look& look, int t, int split, float* s, ptrdiff_t stride) {
  Query queries[kTile];
  Seat seats[kTile];
  alignas(64) float here[kTile * kPage];
  const int dim = look.dim, n = look.group, lo = look.from(t, 0), hi = look.to(t, 0);
  const int begin = split * kSplit, first = lo > begin ? lo : begin, last = hi < begin + kSplit ? hi : begin + kSplit;
  if (first >= last) return;
  for (int g0 = 0, heads = kTile / n; g0 < look.kv_heads; g0 += heads) {
    const int g1 = g0 + heads < look.kv_heads ? g0 + heads : look.kv_heads;
    for (int i = 0; i < (g1 - g0) * n; i++)
      open_query(KV::bf16, look.q + t * look.q_stride + static_cast<ptrdiff_t>(g0 * n + i) * dim, look.scale, dim, queries[i]);
    for (int page = first / kPage; page * kPage < last; page++) {
      const int a = first - page * kPage, b = last - page * kPage, from = a > 0 ? a : 0, to = b < kPage ? b : kPage;
      for (int i = 0; i < (g1 - g0) * n; i++) seats[i] = {queries + i, nullptr, nullptr, from, to};
      for (int g = g0; g < g1; g++) {
        const uint8_t* at = look.page(page, g);
        Ahead next{0, kPage};
        if ((page + 1) * kPage < last) next.way = look.page(page + 1, g) - at;
        score_all<KV::bf16, kQueries>(open_page(KV::bf16, at, dim), dim, next, seats + (g - g0) * n, n, here, kPage);
        for (int c = from / 16 * 16; c < to; c += 16) {
          Floats best = load(here + c);
          for (int i = 1; i < n; i++) best = max(load(here + i * kPage + c), best);
          store(here + c, best);
        }
        std::memcpy(s + g * stride + page * kPage + from, here + from, sizeof(float) * static_cast<size_t>(to - from));
      }
    }
  }
}

// ---- scores of many rows, which share the pages that they look at

template <KV KIND, int R>
void score_all(const Halves<const uint8_t>& page, int dim, int first, int last, const Seat* seats, int n, float* s) {
  for (; n >= R; n -= R, seats += R, s += R * kPage) scores<KIND, R>(page, dim, first, last, Ahead{0, 0}, seats, s);
  if constexpr (R > 1)
    if (n > 0) score_all<KIND, R - 1>(page, dim, first, last, seats, n, s);
}

template <KV KIND>
void score_walk(const Look& look, int g, int t0, int t1, int split, float* s, ptrdiff_t stride) {
  Query queries[kTile];
  int lo[kTile], hi[kTile], first = kSplit, last = 0;
  const int dim = look.dim, n = (t1 - t0) * look.group;
  for (int i = 0; i < n; i++) {
    const int t = t0 + i / look.group, h = g * look.group + i % look.group;
    open_query(KIND, look.q + t * look.q_stride + static_cast<ptrdiff_t>(h) * dim, look.scale, dim, queries[i]);
    lo[i] = look.from(t, g) - split * kSplit;
    hi[i] = look.to(t, g) - split * kSplit;
    hide(s + i * stride, lo[i], hi[i]);
    if (lo[i] >= hi[i]) continue;
    first = lo[i] < first ? lo[i] : first;
    last = hi[i] > last ? hi[i] : last;
  }
  if (first < 0) first = 0;
  if (last > kSplit) last = kSplit;
  for (int page = first / kPage; page * kPage < last; page++) {
    alignas(64) float here[kTile * kPage];
    alignas(64) uint8_t room[KIND == KV::f32 ? 1 : kPage * kMaxDim * 4];
    Seat seats[kTile];
    int row[kTile], seated = 0;
    for (int i = 0; i < n; i++) {
      const int a = lo[i] - page * kPage, b = hi[i] - page * kPage;
      const Seat seat = {queries + i, nullptr, nullptr, a > 0 ? a : 0, b < kPage ? b : kPage};
      if (seat.lo < seat.hi) row[seated] = i, seats[seated++] = seat;
    }
    const int from = first - page * kPage, to = last - page * kPage < kPage ? last - page * kPage : kPage;
    const auto place = [&](int p) { return look.page(split * (kSplit / kPage) + p, g); };
    const uint8_t* at = place(page);
    if constexpr (KIND != KV::f32) at = formed_keys(look.kind, at, (page + 1) * kPage < last ? place(page + 1) : nullptr, to, dim, room);
    score_all<KIND, kQueries>(open_page(KIND, at, dim), dim, from > 0 ? from / 16 : 0, (to + 15) / 16, seats, seated, here);
    for (int i = 0; i < seated; i++)
      std::memcpy(s + row[i] * stride + page * kPage + seats[i].lo, here + i * kPage + seats[i].lo, sizeof(float) * static_cast<size_t>(seats[i].hi - seats[i].lo));
  }
}

void score_rows(const Look& look, int g, int t0, int t1, int split, float* s, ptrdiff_t stride) {
#if defined(__AMX_TILE__)
  if (multiplied(look.kind) == KV::bf16 && fits_tiles(look.dim)) return score_walk_tiles(look, g, t0, t1, split, s, stride);
#endif
  switch (look.kind) {
    case KV::f32: return score_walk<KV::f32>(look, g, t0, t1, split, s, stride);
    case KV::bf16:
    case KV::rows: return score_walk<KV::bf16>(look, g, t0, t1, split, s, stride);
    case KV::zip: return;  // nobody asks for them
    case KV::int8:
    case KV::rows8: return score_walk<KV::int8>(look, g, t0, t1, split, s, stride);
  }
}
