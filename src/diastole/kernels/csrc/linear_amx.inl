// Integer matrices on tile registers. Included by linear.inl; see kernels.hpp for the layouts.
//
// Rows of x are the left factor: both digits of 32 columns. The right one is 32 columns of sixteen rows of weights, once
// for each digit. Weights of four bits are opened to that once for all rows, sixteen times as large for the high digit,
// so one tile sums both; those of eight bits lie in memory as they are needed, and each digit has its tile. Tiles give the
// same whole numbers as vectors do and these are scaled by the same operations in the same order, so results are the same
// bits and each call may take what is faster.

constexpr int kOpened = kTileRows * kTileBytes;  // bytes of a right factor

// A row of blocks of weights, opened group by group as it goes.
template <Weight KIND>
class Passing {
 public:
  Passing(const Matrix& w, int b, uint8_t*) {
    const size_t groups = static_cast<size_t>(w.groups()), at = static_cast<size_t>(b) * groups;
    p_ = w.data + at * (KIND == Weight::q4 ? kBlock4 : kBlock8);
    d_ = w.data + static_cast<size_t>(w.blocks()) * groups * kBlock8 + at * kRows * sizeof(f16);  // q8
  }
  // The right factor of a group, to be asked for in order; it holds for the next three.
  const uint8_t* factor(int g) {
    if constexpr (KIND == Weight::q8) return p_ + static_cast<size_t>(g) * kBlock8;
    const uint8_t* p = p_ + static_cast<size_t>(g) * kBlock4;
    uint8_t* out = ring_[g % kRing];
    for (int line = 0; line < kBlock4; line += 64) prefetch(p + kAhead * kBlock4 + line);
    open(p, out);
    return out;
  }
  Floats d(int g) const { return load_f16(KIND == Weight::q4 ? scales(g) : reinterpret_cast<const f16*>(d_) + static_cast<ptrdiff_t>(g) * kRows); }
  Floats m(int g) const { return load_f16(scales(g) + kRows); }

  static void open(const uint8_t* p, uint8_t* out) {
    const auto put_row = [&](int row, Ints v) { _mm512_store_si512(out + row * kTileBytes, (__m512i)v); };
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const Ints v = load_words(p + 64 * c);
      put_row(c, (v << 4) & static_cast<int32_t>(0xf0f0f0f0u));
      put_row(4 + c, v & static_cast<int32_t>(0xf0f0f0f0u));
      put_row(8 + c, v & 0x0f0f0f0f);
      put_row(12 + c, (v >> 4) & 0x0f0f0f0f);
    }
  }

 private:
  static constexpr int kRing = 4;
  const f16* scales(int g) const { return reinterpret_cast<const f16*>(p_ + static_cast<size_t>(g) * kBlock4 + 256); }
  const uint8_t *p_, *d_;
  alignas(64) uint8_t ring_[KIND == Weight::q4 ? kRing : 1][kOpened];
};

// A row of blocks of weights, opened beforehand.
template <Weight KIND>
class Shelf {
 public:
  Shelf(const Matrix& w, int b, uint8_t* memory) : tiles_(memory), scales_(reinterpret_cast<float*>(memory + static_cast<size_t>(w.groups()) * kOpened)) {
    Passing<KIND> from(w, b, nullptr);
    for (int g = 0; g < w.groups(); g++) {
      if constexpr (KIND == Weight::q4) {
        const uint8_t* p = w.data + (static_cast<size_t>(b) * w.groups() + g) * kBlock4;
        for (int line = 0; line < kBlock4; line += 64) prefetch(p + kAhead * kBlock4 + line);
        from.open(p, memory + static_cast<size_t>(g) * kOpened);
        store(scales_ + 2 * kRows * g + kRows, from.m(g));
      }
      store(scales_ + 2 * kRows * g, from.d(g));
    }
    if constexpr (KIND == Weight::q8) tiles_ = w.data + static_cast<size_t>(b) * w.groups() * kBlock8;
  }
  const uint8_t* factor(int g) const { return tiles_ + static_cast<size_t>(g) * (KIND == Weight::q4 ? kOpened : kBlock8); }
  Floats d(int g) const { return load(scales_ + 2 * kRows * g); }
  Floats m(int g) const { return load(scales_ + 2 * kRows * g + kRows); }

 private:
  const uint8_t* tiles_;
  float* scales_;
};

// Sixteen rows of x from t on, of which some are wanted, times a row of blocks.
template <Weight KIND, class Blocks>
void sixteen_rows(const Matrix& w, const Rows& x, const Out& out, Blocks& blocks, int b, int t, int rows) {
  constexpr int kStart = 2, kLate = 2, kKept = 4;  // what is written to memory is read so many groups later, when it has arrived
  constexpr int kSums = KIND == Weight::q4 ? 1 : 2;
  alignas(64) int32_t sums[kKept][kSums][kTileRows * kRows];
  const uint8_t* factors[kKept];
  const int groups = w.groups();
  const int8_t* left = x.q + static_cast<ptrdiff_t>(t) * bytes_of(w.k);
  const float* turned = x.turned + static_cast<ptrdiff_t>(t / kTileRows) * groups * 2 * kTileRows;
  Floats acc[kTileRows];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; r++) acc[r] = splat(0.f);
  for (int g = -kStart; g < groups + kLate; g++) {
    if (g + kStart < groups) factors[(g + kStart) % kKept] = blocks.factor(g + kStart);
    if (g >= 0 && g < groups) {
      auto& s = sums[g % kKept];
      tile_zero<0>();
      tile_load<6>(factors[g % kKept], kTileBytes);
      tile_load<4>(left + g * kTileRows * kDigits, kDigits);
      tile_dot_signed<0, 4, 6>(KIND == Weight::q4);
      tile_store<0>(s[0], kTileBytes);
      if constexpr (KIND == Weight::q8) {
        tile_zero<1>();
        tile_load<5>(left + g * kTileRows * kDigits + kGroup, kDigits);
        tile_dot_signed<1, 5, 6>(false);
        tile_store<1>(s[kSums - 1], kTileBytes);
      }
    }
    const int now = g - kLate;
    if (now < 0) continue;
    const auto& s = sums[now % kKept];
    const Floats d = blocks.d(now), m = blocks.m(now);
    const float* by = turned + static_cast<ptrdiff_t>(now) * 2 * kTileRows;
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; r++) {
      Ints sum = load_words(s[0] + kRows * r);
      if constexpr (KIND == Weight::q8) sum = (sum << 4) + load_words(s[kSums - 1] + kRows * r);
      acc[r] = fma(to_float(sum) * splat(by[r]), d, acc[r]);
      if constexpr (KIND == Weight::q4) acc[r] = fma(m, splat(by[kTileRows + r]), acc[r]);
    }
  }
  float* done = reinterpret_cast<float*>(sums);  // a loop up to rows over acc itself would keep it in memory throughout
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; r++) store(done + kRows * r, acc[r]);
  for (int r = 0; r < rows; r++) put(w, out, b, t + r, load(done + kRows * r));
}

template <Weight KIND, class Blocks>
void each_sixteen(const Matrix& w, const Rows& x, const Out& out, int b0, int b1, int t0, int t1, uint8_t* memory) {
  for (int b = b0; b < b1; b++) {
    Blocks blocks(w, b, memory);
    for (int t = t0; t < t1; t += kTileRows) sixteen_rows<KIND>(w, x, out, blocks, b, t, t1 - t < kTileRows ? t1 - t : kTileRows);
  }
}

template <Weight KIND>
void multiply_tiles(const Matrix& w, const Rows& x, const Out& out, int b0, int b1, int t0, int t1, uint8_t* memory) {
  constexpr int kDeep = KIND == Weight::q4 ? kDigits : kGroup;  // columns of a left factor, rows of fours of a right one
  TileShape shape;
  shape.set(kTileRows, kTileBytes, 0, 1);
  shape.set(kTileRows, kDeep, 4, 5);
  shape.set(kDeep / 4, kTileBytes, 6);
  shape.use();
  if (t1 - t0 <= 2 * kTileRows)
    each_sixteen<KIND, Passing<KIND>>(w, x, out, b0, b1, t0, t1, memory);
  else
    each_sixteen<KIND, Shelf<KIND>>(w, x, out, b0, b1, t0, t1, memory);
}
