// Attention over bf16 pages on tile registers. Included by attention.inl.
//
// A page's keys are right factors as they lie (pairs of dimensions by tokens), and so are its values (pairs of tokens by
// dimensions); up to sixteen query rows are the left factor, whatever page they come from. Every query row of these
// dimensions goes this way, one or many, so its result does not depend on the rows beside it.

inline bool fits_tiles(int dim) { return dim % 32 == 0; }

// So many bytes from a tile's start to where the same tile of the next page starts are fetched.
inline void fetch_tile(const uint8_t* p, ptrdiff_t stride, ptrdiff_t way) {
  if (way == 0) return;
  for (int row = 0; row < kTileRows; row++) prefetch_far(p + row * stride + way);
}

// Query rows of the seats as left factors: where they lie in order nothing is copied. room: (16, dim).
inline const bf16* left_queries(const Seat* seats, int n, int dim, bf16* room, ptrdiff_t* stride) {
  bool in_order = true;
  for (int r = 1; r < n; r++) in_order = in_order && seats[r].query == seats[0].query + r;
  *stride = in_order ? static_cast<ptrdiff_t>(sizeof(Query)) : dim * static_cast<ptrdiff_t>(sizeof(bf16));
  if (in_order) return seats[0].query->h;
  for (int r = 0; r < n; r++) std::memcpy(room + r * dim, seats[r].query->h, sizeof(bf16) * static_cast<size_t>(dim));
  return room;
}

// Values with zeros where no seat looks: what a page holds there may be anything, also NaN. room: (64, dim).
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

// Up to sixteen rows on a page.
inline void visit_tiles(const Halves<const uint8_t>& page, int dim, Ahead next, const Seat* seats, int n) {
  alignas(64) float s[kTileRows * kPage], sums[kTileRows * kPage];
  alignas(64) bf16 weights[kTileRows * kPage], queries[kTileRows * kMaxDim];
  alignas(64) uint8_t seen[kPage * kMaxDim * 2];
  int lo = kPage, hi = 0;
  for (int r = 0; r < n; r++) {
    lo = seats[r].lo < lo ? seats[r].lo : lo;
    hi = seats[r].hi > hi ? seats[r].hi : hi;
  }
  ptrdiff_t stride;
  const bf16* left = left_queries(seats, n, dim, queries, &stride);
  const int from = lo / 16, to = (hi + 15) / 16;
  each_tile([&](auto block) {
    if (from <= block && block < to) tile_zero<decltype(block)::value>();
  });
  for (int i = 0; i < dim; i += 32) {
    tile_load<4>(left + i, stride);
    each_tile([&](auto block) {
      if (block < from || to <= block) return;
      const uint8_t* k = page.k + (static_cast<size_t>(block) * dim + i) * 32;
      tile_load<5>(k, kTileBytes);
      tile_dot_bf16<decltype(block)::value, 4, 5>();
      fetch_tile(k, kTileBytes, next.at(block * 16));
    });
  }
  each_tile([&](auto block) {
    if (from <= block && block < to) tile_store<decltype(block)::value>(s + block * 16, kPage * static_cast<ptrdiff_t>(sizeof(float)));
  });
  for (int r = 0; r < n; r++) {
    soften(s + r * kPage, seats[r], dim);
    for (int i = 0; i < kPage; i += 32) {
      const float* pair = s + r * kPage + i;
      _mm512_store_si512(weights + r * kPage + i, (__m512i)_mm512_cvtne2ps_pbh((__m512)load(pair + 16), (__m512)load(pair)));
    }
  }
  const uint8_t* v = only_seen(page.v, dim, lo, hi, seen);
  const ptrdiff_t row = static_cast<ptrdiff_t>(dim) * 4, wide = kPage * static_cast<ptrdiff_t>(sizeof(bf16));
  tile_load<4>(weights, wide);
  tile_load<5>(weights + 32, wide);
  for (int first = 0; first < dim; first += 64) {  // four tiles of 16 dimensions
    const int tiles = dim - first < 64 ? (dim - first) / 16 : 4;
    each_tile([&](auto tile) {
      if (tile >= tiles) return;
      const ptrdiff_t at = (first + 16 * tile) * 4, far = kTileRows * row;
      tile_zero<decltype(tile)::value>();
      tile_load<6>(v + at, row);
      tile_dot_bf16<decltype(tile)::value, 4, 6>();
      tile_load<7>(v + at + far, row);
      tile_dot_bf16<decltype(tile)::value, 5, 7>();
      fetch_tile(page.v + at, row, next.at(0));
      fetch_tile(page.v + at + far, row, next.at(32));
      tile_store<decltype(tile)::value>(sums + 16 * tile, wide * 2);
    });
    for (int r = 0; r < n; r++) {
      float* out = seats[r].partial->out + first;
      for (int i = 0; i < 16 * tiles; i += 16) store(out + i, load(out + i) + load(sums + r * kPage + i));
    }
  }
}

inline void visit_all_tiles(const Halves<const uint8_t>& page, int dim, Ahead next, const Seat* seats, int n) {
  for (; n > 0; n -= kTileRows, seats += kTileRows) {
    visit_tiles(page, dim, next, seats, n < kTileRows ? n : kTileRows);
    next.way = 0;  // the first rows have fetched it
  }
}
