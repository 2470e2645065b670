// Matrices on tile registers. Included by linear.inl after linear_digits.inl; see kernels.hpp for the layouts.
//
// Activations are bf16, and so are weights of four and eight bits: whole numbers up to 256 are exact in it. A tile sums a
// group of 32 columns in float32; the group's scale and minimum come in afterwards, in vectors. That is where the time
// goes: beside tile instructions only one vector instruction per cycle gets through, so there are two per row and group.

constexpr int kOpened = kTileRows * kTileBytes;  // bytes of a right factor: pairs of columns by sixteen rows of weights

// Integers are opened where they lie: a right factor's line [pair][16 rows][2] holds every other column of four.
//
//   line   0      1       2      3      4      5       6      7      ...
//   of     0, 2   16, 18  1, 3   17, 19 4, 6   20, 22  5, 7   21, 23
alignas(64) constexpr uint16_t kOrder[kGroup] = {0, 2,  16, 18, 1, 3,  17, 19, 4,  6,  20, 22, 5,  7,  21, 23,
                                                 8, 10, 24, 26, 9, 11, 25, 27, 12, 14, 28, 30, 13, 15, 29, 31};

// 0..15 and -8..7 in bf16, twice, for a choice among 32.
alignas(64) constexpr uint16_t kFromMiddle[32] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
                                                  0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
                                                  0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
alignas(64) constexpr uint16_t kFromZero[32] = {0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120,
                                               0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
                                               0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};

// ---- rows of x: sixteen lie together, group by group, [k/32][16][32], and so do their sums, [k/32][16]; where there are
// not so many, as many as there are

inline int height(const Rows& x) { return x.t < kTileRows ? x.t : kTileRows; }

// Where group g of row t is, counted in groups.
inline size_t group_at(const Rows& x, int t, int g) {
  const size_t tile = static_cast<size_t>(t / kTileRows) * (static_cast<size_t>(x.k) / kGroup) + static_cast<size_t>(g);
  return tile * static_cast<size_t>(height(x)) + static_cast<size_t>(t % kTileRows);
}

inline bool on_tiles(Weight kind, const Rows& x) {
  return kind == Weight::bf16 ? x.k % kGroup == 0 : kind != Weight::f32 && x.t > kFew;
}

// Groups first..last of row t, which are at x.
inline void lay_groups(Weight kind, const Rows& rows, int t, const float* x, int first, int last) {
  const __m512i order = _mm512_load_si512(kOrder);
  for (int g = first; g < last; g++, x += kGroup) {
    const size_t at = group_at(rows, t, g);
    Ints both;
    if (kind == Weight::bf16) {
      both = (Ints)_mm512_cvtne2ps_pbh((__m512)load(x + 16), (__m512)load(x));
    } else {
      const Numbers n(x);
      const Floats unit = splat(n.unit);
      rows.offset[at] = n.offset();
      both = (Ints)_mm512_cvtne2ps_pbh((__m512)(to_float(n.b) * unit), (__m512)(to_float(n.a) * unit));  // exact
      both = (Ints)_mm512_permutexvar_epi16(order, (__m512i)both);
    }
    _mm512_store_si512(rows.h + at * kGroup, (__m512i)both);
  }
}

// ---- integers as right factors

template <Weight KIND>
inline void open_q4(const uint8_t* p, uint8_t* out) {
  const __m512i numbers = _mm512_load_si512(kZero<KIND> ? kFromMiddle : kFromZero);
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    const __m512i v = (__m512i)load_words(p + 64 * c);
    uint8_t* lines = out + 4 * c * kTileBytes;
    _mm512_store_si512(lines, _mm512_permutexvar_epi16(v, numbers));  // of an index only five bits count
    _mm512_store_si512(lines + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 4), numbers));
    _mm512_store_si512(lines + 128, _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 8), numbers));
    _mm512_store_si512(lines + 192, _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 12), numbers));
  }
}

inline void open_q8(const uint8_t* p, uint8_t* out) {
  const auto upper = [](Ints byte_on_top) { return bits(to_float(byte_on_top >> 24)); };  // its lower half is zero
#pragma GCC unroll 8
  for (int c = 0; c < 8; c++) {
    const Ints v = load_words(p + 64 * c);
    uint8_t* line = out + (c < 4 ? 4 * c : 4 * (c - 4) + 1) * kTileBytes;
    const auto low = [](Ints top) { return (Ints)_mm512_srli_epi32((__m512i)top, 16); };
    _mm512_store_si512(line, (__m512i)(low(upper(v << 24)) | upper(v << 8)));
    _mm512_store_si512(line + 2 * kTileBytes, (__m512i)(low(upper(v << 16)) | upper(v)));
  }
}

// One row of blocks of eight-bit weights; see Fours.
struct Eights {
  Eights(const Matrix& w, int b) {
    const size_t groups = static_cast<size_t>(w.groups()), first = static_cast<size_t>(b) * groups;
    numbers = w.data + first * kBlock8;
    factors = reinterpret_cast<const f16*>(w.data + static_cast<size_t>(w.blocks()) * groups * kBlock8) + first * kRows;
  }
  const uint8_t* at(size_t g) const { return numbers + g * kBlock8; }
  void open(size_t g, Floats& d, Floats&) const { d = load_f16(factors + g * kRows); }
  Floats close(Floats sum) const { return sum; }
  void fetch(size_t g, size_t ahead) const {
    for (int line = 0; line < kBlock8; line += 64) prefetch(at(g) + ahead + line);
  }

  const uint8_t* numbers;
  const f16* factors;
};

template <Weight KIND>
using Blocks = std::conditional_t<is_four(KIND), Fours<KIND>, Eights>;

// A row of blocks of weights, opened group by group as it goes.
template <Weight KIND>
class Passing {
 public:
  Passing(const Matrix& w, int b, uint8_t*) : from_(w, b) {}
  // The right factor of a group, to be asked for in order; it holds for the next three.
  const uint8_t* factor(int g) {
    const size_t at = static_cast<size_t>(g);
    uint8_t* out = ring_[g % kRing];
    from_.fetch(at, kAhead * kBlock4);
    is_four(KIND) ? open_q4<KIND>(from_.at(at), out) : open_q8(from_.at(at), out);
    return out;
  }
  void open(int g, Floats& d, Floats& m) const { from_.open(static_cast<size_t>(g), d, m); }
  Floats close(Floats sum) const { return from_.close(sum); }

 private:
  static constexpr int kRing = 4;
  Blocks<KIND> from_;
  alignas(64) uint8_t ring_[kRing][kOpened];
};

// A row of blocks of weights, opened beforehand.
template <Weight KIND>
class Shelf {
 public:
  Shelf(const Matrix& w, int b, uint8_t* memory) : tiles_(memory), scales_(reinterpret_cast<float*>(memory + static_cast<size_t>(w.groups()) * kOpened)), own_(w, b) {
    Passing<KIND> from(w, b, nullptr);
    for (int g = 0; g < w.groups(); g++) {
      std::memcpy(memory + static_cast<size_t>(g) * kOpened, from.factor(g), kOpened);
      Floats d, m = splat(0.f);
      from.open(g, d, m);
      store(scales_ + 2 * kRows * g, d);
      store(scales_ + 2 * kRows * g + kRows, m);
    }
  }
  const uint8_t* factor(int g) const { return tiles_ + static_cast<size_t>(g) * kOpened; }
  void open(int g, Floats& d, Floats& m) const {
    d = load(scales_ + 2 * kRows * g);
    m = load(scales_ + 2 * kRows * g + kRows);
  }
  Floats close(Floats sum) const { return own_.close(sum); }

 private:
  const uint8_t* tiles_;
  float* scales_;
  Blocks<KIND> own_;
};

// ---- products

// What `put` does with R rows, of which `rows` are there.
template <int R>
inline void put_rows(const Matrix& w, const Out& out, int b, int t, int rows, Floats (&acc)[R]) {
  if (rows == R && w.n - b * kRows >= kRows) {
    float* y = out.y + t * out.stride + b * kRows;
    if (out.bias) {
      const Floats bias = load(out.bias + b * kRows);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) acc[r] = acc[r] + bias;
    }
    if (out.add) {
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) store(y + r * out.stride, load(y + r * out.stride) + acc[r]);
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) store(y + r * out.stride, acc[r]);
    }
    return;
  }
  alignas(64) float done[R * kRows];  // a loop up to rows over acc itself would keep it in memory throughout
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) store(done + kRows * r, acc[r]);
  for (int r = 0; r < rows; r++) put(w, out, b, t + r, load(done + kRows * r));
}

// The first R of sixteen rows of x from t on, of which `rows` are wanted, times a row of blocks.
template <Weight KIND, int R, class Blocks>
void some_rows(const Matrix& w, const Rows& x, const Out& out, Blocks& blocks, int b, int t, int rows) {
  constexpr int kStart = 2, kLate = 2, kKept = 4;  // what is written to memory is read so many groups later, when it has arrived
  alignas(64) float sums[kKept][kTileRows * kRows];
  const uint8_t* factors[kKept];
  const int groups = w.groups(), high = height(x);
  const bf16* left = x.h + group_at(x, t, 0) * kGroup;
  const float* offset = x.offset + group_at(x, t, 0);
  Floats acc[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) acc[r] = splat(0.f);
  for (int g = -kStart; g < groups + kLate; g++) {
    if (g + kStart < groups) factors[(g + kStart) % kKept] = blocks.factor(g + kStart);
    if (g >= 0 && g < groups) {
      tile_zero<0>();
      tile_load<6>(factors[g % kKept], kTileBytes);
      tile_load<4>(left + static_cast<ptrdiff_t>(g) * high * kGroup, kTileBytes);
      tile_dot_bf16<0, 4, 6>();
      tile_store<0>(sums[g % kKept], kTileBytes);
    }
    const int now = g - kLate;
    if (now < 0) continue;
    const float *s = sums[now % kKept], *by = offset + static_cast<ptrdiff_t>(now) * high;
    Floats d, m;
    blocks.open(now, d, m);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      acc[r] = fma(load(s + kRows * r), d, acc[r]);
      if constexpr (KIND == Weight::q4 || KIND == Weight::q4b) acc[r] = fma(m, splat(by[r]), acc[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) acc[r] = blocks.close(acc[r]);
  put_rows<R>(w, out, b, t, rows, acc);
}

template <Weight KIND, int R, class Blocks>
inline void row_of_blocks(const Matrix& w, const Rows& x, const Out& out, int b, int t0, int t1, uint8_t* memory) {
  Blocks blocks(w, b, memory);
  int t = t0;
  for (; t1 - t > kTileRows; t += kTileRows) some_rows<KIND, kTileRows>(w, x, out, blocks, b, t, kTileRows);
  some_rows<KIND, R>(w, x, out, blocks, b, t, t1 - t);
}

// f(the least of 1, 2, 4, 8, 16 rows that holds so many)
template <class F>
inline void at_least_rows(int rows, const F& f) {
  if (rows > 8) return f(Number<16>());
  if (rows > 4) return f(Number<8>());
  if (rows > 2) return f(Number<4>());
  return rows > 1 ? f(Number<2>()) : f(Number<1>());
}

template <Weight KIND>
void multiply_integers(const Matrix& w, const Rows& x, const Out& out, int b0, int b1, int t0, int t1, uint8_t* memory) {
  at_least_rows((t1 - t0 - 1) % kTileRows + 1, [&](auto last) {
    constexpr int kLast = decltype(last)::value;
    for (int b = b0; b < b1; b++) {
      if (t1 - t0 <= kTileRows)
        row_of_blocks<KIND, kLast, Passing<KIND>>(w, x, out, b, t0, t1, memory);
      else
        row_of_blocks<KIND, kLast, Shelf<KIND>>(w, x, out, b, t0, t1, memory);
    }
  });
}

// Weights in bf16 are right factors as they lie, and all groups are summed in the tile: NB rows of blocks by NT sixteens
// of rows, so that what is loaded is used NB and NT times.
template <int NB, int NT>
void whole_columns(const Matrix& w, const Rows& x, const Out& out, int b, int t, int t1, bool first) {
  static_assert(NB <= 2 && NB * NT <= 4, "sums lie in tiles 0 to 3, left factors in 4 and 5, right ones in 6 and 7");
  const int groups = w.groups();
  const uint8_t* right = w.data + static_cast<size_t>(b) * groups * kOpened;
  const size_t next_block = static_cast<size_t>(groups) * kOpened, step = static_cast<size_t>(height(x)) * kGroup;
  const bf16* left[NT];
  for (int i = 0; i < NT; i++) left[i] = x.h + group_at(x, t + i * kTileRows, 0) * kGroup;
  const auto each = [](const auto& f) {
    each_tile([&](auto tile) {
      if constexpr (tile < NB * NT) f(tile, Number<tile / NT>(), Number<tile % NT>());
    });
  };
  each([](auto tile, auto, auto) { tile_zero<decltype(tile)::value>(); });
  for (int g = 0; g < groups; g++, right += kOpened) {
    tile_load<6>(right, kTileBytes);
    if constexpr (NB == 2) tile_load<7>(right + next_block, kTileBytes);
    if (first)
      for (int line = 0; line < kOpened; line += 64) prefetch(right + kAhead * kBlock4 + line);
    each([&](auto tile, auto j, auto i) {
      constexpr int kLeft = 4 + decltype(i)::value % 2;
      if constexpr (j == 0) tile_load<kLeft>(left[i] + static_cast<size_t>(g) * step, kTileBytes);
      tile_dot_bf16<decltype(tile)::value, kLeft, 6 + decltype(j)::value>();
    });
  }
  alignas(64) float sums[NB * NT][kTileRows * kRows];
  each([&](auto tile, auto, auto) { tile_store<decltype(tile)::value>(sums[tile], kTileBytes); });
  each([&](auto tile, auto j, auto i) {
    const int from = t + i * kTileRows, rows = t1 - from < kTileRows ? t1 - from : kTileRows;
    Floats acc[kTileRows];
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; r++) acc[r] = load(sums[tile] + r * kRows);
    put_rows<kTileRows>(w, out, b + j, from, rows, acc);
  });
}

template <int NB>
void rows_of_blocks(const Matrix& w, const Rows& x, const Out& out, int b, int t0, int t1) {
  constexpr int kTall = 4 / NB;  // sixteens at a time
  int t = t0;
  for (; t1 - t > (kTall - 1) * kTileRows; t += kTall * kTileRows) whole_columns<NB, kTall>(w, x, out, b, t, t1, t == t0);
  if (t1 - t > 2 * kTileRows && kTall > 2) {
    whole_columns<1, 3>(w, x, out, b, t, t1, t == t0);
  } else if (t1 - t > kTileRows && kTall > 2) {
    whole_columns<1, 2>(w, x, out, b, t, t1, t == t0);
  } else if (t1 > t) {
    whole_columns<NB, 1>(w, x, out, b, t, t1, t == t0);
  }
}

inline void multiply_bf16(const Matrix& w, const Rows& x, const Out& out, int b0, int b1, int t0, int t1) {
  int b = b0;
  if (t1 - t0 > kTileRows)  // fewer rows are bound by reading the weights: one stream is enough
    for (; b + 2 <= b1; b += 2) rows_of_blocks<2>(w, x, out, b, t0, t1);
  for (; b < b1; b++) rows_of_blocks<1>(w, x, out, b, t0, t1);
}

template <Weight KIND>
void multiply_tiles(const Matrix& w, const Rows& x, const Out& out, int b0, int b1, int t0, int t1, uint8_t* memory) {
  TileShape shape;
  shape.set(height(x), kTileBytes, 0, 1, 2, 3, 4, 5);
  shape.set(kTileRows, kTileBytes, 6, 7);
  shape.use();
  if constexpr (KIND == Weight::bf16)
    multiply_bf16(w, x, out, b0, b1, t0, t1);
  else
    multiply_integers<KIND>(w, x, out, b0, b1, t0, t1, memory);
}
