// Attention over bf16 pages on tile registers. Included by attention.inl.
//
// A page's keys are right factors as they lie (pairs of dimensions by tokens), and so are its values (pairs of tokens by
// dimensions); sixteen query rows are the left factor, whichever tokens they see. Every query row of these dimensions
// goes this way, one or many, so its result does not depend on the rows beside it: what it does not see has weight 0, and
// adding nothing to a tile changes nothing.

inline bool fits_tiles(int dim) { return dim % 32 == 0; }

// Sixteen vectors, each to one number: lane r is op over the lanes of v[r], in the same order for every r.
template <class Op>
inline Floats across(const Floats* v, const Op& op) {
  const auto halves = [&](Floats a, Floats b) {
    return op((Floats)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x44), (Floats)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xee));
  };
  const auto quarters = [&](Floats a, Floats b) {
    return op((Floats)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x88), (Floats)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xdd));
  };
  const auto pairs = [&](Floats a, Floats b) {
    return op((Floats)_mm512_shuffle_ps((__m512)a, (__m512)b, 0x44), (Floats)_mm512_shuffle_ps((__m512)a, (__m512)b, 0xee));
  };
  const auto singles = [&](Floats a, Floats b) {
    return op((Floats)_mm512_shuffle_ps((__m512)a, (__m512)b, 0x88), (Floats)_mm512_shuffle_ps((__m512)a, (__m512)b, 0xdd));
  };
  const auto four = [&](int j) { return quarters(halves(v[j], v[4 + j]), halves(v[8 + j], v[12 + j])); };
  return singles(pairs(four(0), four(1)), pairs(four(2), four(3)));
}

// Up to sixteen query rows on their way through the pages of a split.
struct Sixteen {
  alignas(64) bf16 query[kTileRows * kMaxDim];  // (16, dim)
  alignas(64) float out[kTileRows * kMaxDim];   // (16, dim)
  alignas(64) float most[kTileRows], sum[kTileRows];
  int lo[kTileRows], hi[kTileRows];  // tokens of the split that a row sees
  int rows;
};

// Which tokens lo <= t < hi of a page rows see.
struct Seen {
  alignas(64) int32_t lo[kTileRows], hi[kTileRows];
  int first = kPage, last = 0;  // of any row
  bool whole = true;            // all rows see all

  Seen(const Sixteen& s, int page) {
    for (int r = 0; r < s.rows; r++) {
      const int a = s.lo[r] - page * kPage, b = s.hi[r] - page * kPage;
      lo[r] = a > 0 ? a : 0;
      hi[r] = b < kPage ? b : kPage;
      whole = whole && lo[r] == 0 && hi[r] == kPage;
      if (lo[r] >= hi[r]) continue;
      first = lo[r] < first ? lo[r] : first;
      last = hi[r] > last ? hi[r] : last;
    }
  }
};

#include "attention_few.inl"

// So many bytes from a tile's start to where the same tile of the next page starts are fetched.
inline void fetch_tile(const uint8_t* p, ptrdiff_t stride, ptrdiff_t way) {
  if (way == 0) return;
  for (int row = 0; row < kTileRows; row++) prefetch(p + row * stride + way);
}

// Values with zeros where no row looks: what a page holds there may be anything, also NaN. room: (64, dim).
inline const uint8_t* only_seen(const uint8_t* v, int dim, int lo, int hi, uint8_t* room) {
  if (lo == 0 && hi == kPage) return v;
  for (int t = 0; t < kPage; t += 2) {
    const int32_t keep = static_cast<int32_t>((lo <= t && t < hi ? 0xffffu : 0u) | (lo <= t + 1 && t + 1 < hi ? 0xffff0000u : 0u));
    for (int i = 0; i < dim; i += 16) {
      const size_t at = (static_cast<size_t>(t) * dim + 2 * static_cast<size_t>(i)) * 2;
      _mm512_store_si512(room + at, (__m512i)(load_words(v + at) & keep));
    }
  }
  return room;
}

// Scores of a page: s (16, 64).
inline void score_tiles(const Halves<const uint8_t>& page, int dim, Ahead next, const Sixteen& q, const Seen& view, float* s) {
  const int from = view.first / 16, to = (view.last + 15) / 16;
  each_tile([&](auto block) {
    if (from <= block && block < to) tile_zero<decltype(block)::value>();
  });
  for (int i = 0; i < dim; i += 32) {
    tile_load<4>(q.query + i, dim * static_cast<ptrdiff_t>(sizeof(bf16)));
    each_tile([&](auto block) {
      if (block < from || to <= block) return;
      const uint8_t* k = page.k + (static_cast<size_t>(block) * dim + i) * 32;
      tile_load<6>(k, kTileBytes);
      tile_dot_bf16<decltype(block)::value, 4, 6>();
      fetch_tile(k, kTileBytes, next.at(block * 16));
    });
  }
  each_tile([&](auto block) {
    if (from <= block && block < to) tile_store<decltype(block)::value>(s + block * 16, kPage * static_cast<ptrdiff_t>(sizeof(float)));
  });
}

// Softmax of sixteen rows over a page, continued: s (16, 64) becomes weights (16, 64). FULL: there are sixteen rows, and
// all see all.
template <bool FULL>
inline void soften_tiles(float* s, Sixteen& q, const Seen& view, int dim, bf16* weights) {
  const int rows = FULL ? kTileRows : q.rows;
  Floats part[kTileRows];
  if (!FULL)
    for (int r = rows; r < kTileRows; r++) part[r] = splat(kUnseen);
  const auto seen = [&](int r, int b) { return seen_lanes(b, view.lo[r], view.hi[r]); };
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) {
    Floats v[4];
    for (int b = 0; b < 4; b++) {
      v[b] = load(s + r * kPage + b * 16);
      if (!FULL) store(s + r * kPage + b * 16, v[b] = select(seen(r, b), v[b], splat(kUnseen)));
    }
    part[r] = max(max(v[1], v[0]), max(v[3], v[2]));
  }
  const Floats most = across(part, [](Floats a, Floats b) { return max(b, a); }), old = load(q.most);
  const Ints grown = less(old + kSlack, most);
  const Floats now = select(grown, most, old);
  if (sum(grown) != 0) {
    const Floats shrink = weight_of<KV::bf16>(old - now);
    alignas(64) float by[kTileRows];
    store(by, shrink);
    store(q.most, now);
    store(q.sum, load(q.sum) * shrink);
    for (int r = 0; r < rows; r++) {
      if (by[r] == 1.f) continue;
      for (int i = 0; i < dim; i += 16) store(q.out + r * dim + i, load(q.out + r * dim + i) * by[r]);
    }
  }
  if (!FULL)
    for (int r = rows; r < kTileRows; r++) part[r] = splat(0.f);
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) {
    Floats e[4];
    for (int b = 0; b < 4; b++) {
      e[b] = weight_of<KV::bf16>(load(s + r * kPage + b * 16) - splat(q.most[r]));
      if (!FULL) e[b] = select(seen(r, b), e[b], splat(0.f));
    }
    part[r] = (e[0] + e[1]) + (e[2] + e[3]);
    for (int b = 0; b < 4; b += 2)
      _mm512_store_si512(weights + r * kPage + b * 16, (__m512i)_mm512_cvtne2ps_pbh((__m512)e[b + 1], (__m512)e[b]));
  }
  store(q.sum, load(q.sum) + across(part, [](Floats a, Floats b) { return a + b; }));
}

// Weighted values of a page, added to what rows have.
inline void add_tiles(const Halves<const uint8_t>& page, int dim, Ahead next, Sixteen& q, const Seen& view, const bf16* weights) {
  alignas(64) uint8_t room[kPage * kMaxDim * 2];
  const uint8_t* v = only_seen(page.v, dim, view.first, view.last, room);
  const ptrdiff_t row = static_cast<ptrdiff_t>(dim) * 4, wide = kPage * static_cast<ptrdiff_t>(sizeof(bf16));
  tile_load<4>(weights, wide);
  tile_load<5>(weights + 32, wide);
  for (int first = 0; first < dim; first += 64) {  // four tiles of 16 dimensions
    each_tile([&](auto tile) {
      if (first + 16 * tile >= dim) return;
      const ptrdiff_t at = (first + 16 * tile) * 4, far = kTileRows * row;
      float* out = q.out + first + 16 * tile;
      tile_load<decltype(tile)::value>(out, row);
      tile_load<6>(v + at, row);
      tile_dot_bf16<decltype(tile)::value, 4, 6>();
      tile_load<7>(v + at + far, row);
      tile_dot_bf16<decltype(tile)::value, 5, 7>();
      fetch_tile(page.v + at, row, next.at(0));
      fetch_tile(page.v + at + far, row, next.at(32));
      tile_store<decltype(tile)::value>(out, row);
    });
  }
}

inline void visit_tiles(const Halves<const uint8_t>& page, int dim, Ahead next, bool near, Sixteen& q, const Seen& view) {
  alignas(64) float s[kTileRows * kPage];
  alignas(64) bf16 weights[kTileRows * kPage];
  if (q.rows <= kFewQueries && !near) {
    alignas(64) uint8_t room[kPage * kMaxDim * 2];
    const uint8_t* v = only_seen(page.v, dim, view.first, view.last, room);
    for_rows(q.rows, [&](auto r) {
      score_few<decltype(r)::value>(page, dim, next, q.query, view, s);
      soften_tiles<false>(s, q, view, dim, weights);
      if (v == room) next.way = 0;
      add_few<decltype(r)::value>(v, dim, next, weights, view, q.out);
    });
    return;
  }
  score_tiles(page, dim, next, q, view, s);
  if (view.whole && q.rows == kTileRows)
    soften_tiles<true>(s, q, view, dim, weights);
  else
    soften_tiles<false>(s, q, view, dim, weights);
  add_tiles(page, dim, next, q, view, weights);
}

// As fold_query.
inline float fold_row(const float* q, float scale, const Measures& m, int dim, bf16* out) {
  Floats offset[2] = {splat(0.f), splat(0.f)};
  for (int i = 0; i < dim; i += 32) {
    const Floats a = load(q + i) * scale, b = load(q + i + 16) * scale;
    const __m512 x = (__m512)(a * load(m.k_step + i)), y = (__m512)(b * load(m.k_step + i + 16));
    _mm512_storeu_si512(out + i, (__m512i)_mm512_cvtne2ps_pbh(y, x));
    offset[0] = fma(a, load(m.k_center + i), offset[0]), offset[1] = fma(b, load(m.k_center + i + 16), offset[1]);
  }
  return sum(offset[0] + offset[1]);
}

// Sixteen rows on a page of codes. queries: their own, not scaled.
inline void visit_tile_codes(const Halves<const uint8_t>& codes, const Measures& m, int dim, const float* const* queries, float scale,
                             Sixteen& q, const Seen& view) {
  alignas(64) float s[kTileRows * kPage];
  alignas(64) bf16 weights[kTileRows * kPage];
  Sixteen fold;
  float offset[kTileRows];
  for (int r = 0; r < q.rows; r++) offset[r] = fold_row(queries[r], scale, m, dim, fold.query + r * dim);
  score_tiles(codes, dim, Ahead{0, 0}, fold, view, s);
  for (int r = 0; r < q.rows; r++)
    for (int b = 0; b < kPage; b += 16) store(s + r * kPage + b, load(s + r * kPage + b) + offset[r]);
  if (view.whole && q.rows == kTileRows)
    soften_tiles<true>(s, q, view, dim, weights);
  else
    soften_tiles<false>(s, q, view, dim, weights);
  for (int r = 0; r < q.rows; r++) {
    bf16* row = weights + r * kPage;
    Floats center = splat(0.f), w[4];
    for (int b = 0; b < 4; b++) {
      w[b] = (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(row + b * 16))), 16);
      center = fma(w[b], load(m.v_center + b * 16), center);
      w[b] = w[b] * load(m.v_step + b * 16);
    }
    for (int b = 0; b < 4; b += 2) _mm512_store_si512(row + b * 16, (__m512i)_mm512_cvtne2ps_pbh((__m512)w[b + 1], (__m512)w[b]));
    const Floats start = splat(sum(center));
    for (int i = 0; i < dim; i += 16) store(fold.out + r * dim + i, start);
  }
  add_tiles(codes, dim, Ahead{0, 0}, fold, view, weights);
  for (int r = 0; r < q.rows; r++)
    for (int i = 0; i < dim; i += 16) {
      float* out = q.out + r * dim + i;
      store(out, fma(load(fold.out + r * dim + i), load(m.v_scale + i), load(out)));
    }
}

void walk_tiles(const Look& look, int g, int t0, int t1, int split, Partial* partials) {
  static_assert(kTile % kTileRows == 0, "rows are taken in whole sixteens");
  Sixteen all[kTile / kTileRows];
  const float* queries[kTile];
  const int dim = look.dim, n = (t1 - t0) * look.group, groups = (n + kTileRows - 1) / kTileRows;
  TileShape shape;
  const int high = n < kTileRows ? n : kTileRows;
  shape.set(high, kTileBytes, 0, 1, 2, 3, 4, 5);
  shape.set(kTileRows, kTileBytes, 6, 7);
  int first = look.split_tokens, last = 0;
  for (int i = 0; i < n; i++) {
    const int t = t0 + i / look.group, h = g * look.group + i % look.group, r = i % kTileRows;
    Sixteen& own = all[i / kTileRows];
    own.rows = r + 1;
    const float* q = queries[i] = look.q + t * look.q_stride + static_cast<ptrdiff_t>(h) * dim;
    for (int d = 0; d < dim; d += 16) {
      store_bf16(own.query + r * dim + d, load(q + d) * look.scale);
      store(own.out + r * dim + d, splat(0.f));
    }
    own.most[r] = kUnseen;
    own.sum[r] = 0;
    own.lo[r] = look.from(t, g) - split * look.split_tokens;
    own.hi[r] = look.to(t, g) - split * look.split_tokens;
    if (own.lo[r] < own.hi[r]) {
      first = own.lo[r] < first ? own.lo[r] : first;
      last = own.hi[r] > last ? own.hi[r] : last;
    }
  }
  for (int i = n; i < groups * kTileRows; i++) {  // nobody
    all[i / kTileRows].most[i % kTileRows] = kUnseen;
    all[i / kTileRows].sum[i % kTileRows] = 0;
  }
  if (first < 0) first = 0;
  if (last > look.split_tokens) last = look.split_tokens;
  if (n > kFewQueries || look.near || look.kind == KV::zip) shape.use();
  const DenormalsAreZero as_tiles;
  const auto place = [&](int page) { return look.page(split * (look.split_tokens / kPage) + page, g); };
  for (int page = first / kPage; page * kPage < last; page++) {
    alignas(64) uint8_t room[kPage * kMaxDim * 4];
    const uint8_t* raw = look.kind == KV::zip ? look.unsealed(split * (look.split_tokens / kPage) + page, g) : nullptr;
    const int left = last - (page + 1) * kPage;
    const uint8_t* after = left > 0 ? place(page + 1) : look.next;
    if (look.kind == KV::zip && raw == nullptr) {
      Measures m;
      fetch_page(after, look.page_bytes);
      const Parts parts(dim, look.fine);
      open_measures(place(page), parts, dim, m);
      open_codes(place(page), parts, dim, look.fine, room);
      const Halves<const uint8_t> codes = open_page(KV::bf16, static_cast<const uint8_t*>(room), dim);
      for (int i = 0; i < groups; i++) {
        const Seen view(all[i], page);
        if (view.first < view.last) visit_tile_codes(codes, m, dim, queries + i * kTileRows, look.scale, all[i], view);
      }
      continue;
    }
    const uint8_t* at = raw != nullptr ? raw : formed(look.kind, place(page), last - page * kPage, dim, room);
    Ahead next = {after != nullptr && raw == nullptr ? after - at : 0, left > 0 ? left : kPage};
    const Halves<const uint8_t> open = open_page(KV::bf16, at, dim);
    for (int i = 0; i < groups; i++) {
      const Seen view(all[i], page);
      if (view.first >= view.last) continue;
      visit_tiles(open, dim, next, look.near, all[i], view);
      next.way = 0;  // the first rows have fetched it
    }
  }
  for (int i = 0; i < n; i++) {
    const Sixteen& own = all[i / kTileRows];
    const int r = i % kTileRows;
    partials[i].most = own.most[r];
    partials[i].sum = own.sum[r];
    for (int d = 0; d < dim; d += 16) store(partials[i].out + d, load(own.out + r * dim + d));
  }
}

// Scores alone of up to kTile rows: see attention.inl.
void score_walk_tiles(const Look& look, int g, int t0, int t1, int split, float* s, ptrdiff_t stride) {
  Sixteen all[kTile / kTileRows];
  const int dim = look.dim, n = (t1 - t0) * look.group, groups = (n + kTileRows - 1) / kTileRows;
  TileShape shape;
  const int high = n < kTileRows ? n : kTileRows;
  shape.set(high, kTileBytes, 0, 1, 2, 3, 4);
  shape.set(kTileRows, kTileBytes, 6);
  int first = kSplit, last = 0;
  for (int i = 0; i < n; i++) {
    const int t = t0 + i / look.group, h = g * look.group + i % look.group, r = i % kTileRows;
    Sixteen& own = all[i / kTileRows];
    own.rows = r + 1;
    const float* q = look.q + t * look.q_stride + static_cast<ptrdiff_t>(h) * dim;
    for (int d = 0; d < dim; d += 16) store_bf16(own.query + r * dim + d, load(q + d) * look.scale);
    own.lo[r] = look.from(t, g) - split * kSplit;
    own.hi[r] = look.to(t, g) - split * kSplit;
    hide(s + i * stride, own.lo[r], own.hi[r]);
    if (own.lo[r] >= own.hi[r]) continue;
    first = own.lo[r] < first ? own.lo[r] : first;
    last = own.hi[r] > last ? own.hi[r] : last;
  }
  if (first < 0) first = 0;
  if (last > kSplit) last = kSplit;
  if (n > kFewQueries) shape.use();
  const DenormalsAreZero as_tiles;
  for (int page = first / kPage; page * kPage < last; page++) {
    alignas(64) uint8_t room[kPage * kMaxDim * 4];
    alignas(64) float here[kTileRows * kPage];
    const auto place = [&](int p) { return look.page(split * (kSplit / kPage) + p, g); };
    const uint8_t* after = (page + 1) * kPage < last ? place(page + 1) : nullptr;
    const uint8_t* at = formed_keys(look.kind, place(page), after, last - page * kPage, dim, room);
    const Halves<const uint8_t> open = open_page(KV::bf16, at, dim);
    for (int i = 0; i < groups; i++) {
      const Seen view(all[i], page);
      if (view.first >= view.last) continue;
      if (all[i].rows <= kFewQueries)
        for_rows(all[i].rows, [&](auto r) { score_few<decltype(r)::value>(open, dim, Ahead{0, 0}, all[i].query, view, here); });
      else
        score_tiles(open, dim, Ahead{0, 0}, all[i], view, here);
      for (int r = 0; r < all[i].rows; r++)
        if (view.lo[r] < view.hi[r])
          std::memcpy(s + (i * kTileRows + r) * stride + page * kPage + view.lo[r], here + r * kPage + view.lo[r],
                      sizeof(float) * static_cast<size_t>(view.hi[r] - view.lo[r]));
    }
  }
}
