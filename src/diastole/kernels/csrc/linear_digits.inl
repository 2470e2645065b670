// Activations of integer matrices in twelve bits, one scale for a group of 32 columns. Included by linear.inl.
//
// A number is 16 hi + lo, both in eight bits: twice the products of one byte, and an error sixteen times smaller. Where
// there are tile registers this is also the faster way: the two digits of 32 columns fill a row of a tile.

constexpr float kLimit = 127 * 16;  // of the numbers
constexpr int kTileFrom = 5;        // rows of x for which tiles are faster than vectors

constexpr int kDigits = 2 * kGroup;  // bytes of a group of a row: [hi 32 | lo 32]

inline ptrdiff_t bytes_of(int k) { return 2 * static_cast<ptrdiff_t>(k); }  // of a row

// Groups go `step` bytes apart. total: per group the sums of hi and of lo, or null; scale: one per group at every second
// place.
void quantize_groups(const float* x, int k, int8_t* q, ptrdiff_t step, float* scale, int32_t* total, float* offset) {
  for (int g = 0; g < k / kGroup; g++, x += kGroup, q += step, scale += 2) {
    const Floats a = load(x), b = load(x + 16);
    const Ints larger = max(magnitude(a), magnitude(b));
    const float most = as_float(largest(larger));  // NaN if one is, and so is the scale
    const float inverse = most > 0 ? kLimit / most : 0.f;
    const Ints n = round_to_int(a * inverse), m = round_to_int(b * inverse);
    const Ints high_n = (n + 8) >> 4, high_m = (m + 8) >> 4, low_n = n - (high_n << 4), low_m = m - (high_m << 4);
    narrow8(high_n, q);
    narrow8(high_m, q + 16);
    narrow8(low_n, q + 32);
    narrow8(low_m, q + 48);
    scale[0] = scale[1] = most / kLimit;
    offset[g] = scale[0] * static_cast<float>(sum(n + m));
    if (total != nullptr) {
      *total++ = sum(high_n + high_m);
      *total++ = sum(low_n + low_m);
    }
  }
}

// Many rows go to tiles: sixteen of them lie together, group by group, [k/32][16 rows][64], and so does what their sums
// are scaled with, [k/32][scale 16 | offset 16]. Few rows follow each other, [k/32][64].
inline void quantize(const Rows& rows, int t) {
  const size_t groups = static_cast<size_t>(rows.k) / kGroup, at = static_cast<size_t>(t) * groups;
  const float* x = rows.f + t * rows.stride;
  float *scale = rows.scale + 2 * at, *offset = rows.offset + at;
  if (rows.t < kTileFrom) return quantize_groups(x, rows.k, rows.q + at * kDigits, kDigits, scale, rows.total + 2 * at, offset);
  const size_t tile = static_cast<size_t>(t / kTileRows) * groups, row = static_cast<size_t>(t % kTileRows);
  quantize_groups(x, rows.k, rows.q + tile * kTileRows * kDigits + row * kDigits, kTileRows * kDigits, scale, nullptr, offset);
  float* turned = rows.turned + tile * 2 * kTileRows + row;
  for (size_t g = 0; g < groups; g++, turned += 2 * kTileRows) {
    turned[0] = scale[2 * g];
    turned[kTileRows] = offset[g];
  }
}

template <int MR, int NB, bool FIRST>
inline void tile_q4(const Matrix& w, int b, const Rows& x, int t, Floats (&acc)[MR][NB]) {
  const size_t groups = static_cast<size_t>(w.groups()), row0 = static_cast<size_t>(t);
  const ptrdiff_t step = bytes_of(w.k);
  const uint8_t* p[NB];
  for (int j = 0; j < NB; j++) p[j] = w.data + static_cast<size_t>(b + j) * groups * kBlock4;
  const size_t own = NB * groups * kBlock4, ahead = NB > 1 && own <= kNear ? own : kAhead * kBlock4;
  for (size_t g = 0; g < groups; g++) {
    const int8_t* q = x.q + t * step + static_cast<ptrdiff_t>(g) * 2 * kGroup;
    Ints high[MR][NB], low[MR][NB];  // sums of the digits
    for (int r = 0; r < MR; r++)
      for (int j = 0; j < NB; j++) high[r][j] = low[r][j] = splat(0);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      Ints first[NB], second[NB];  // weights of columns 4c and of columns 16+4c
      for (int j = 0; j < NB; j++) {
        const Ints v = load_words(p[j] + 64 * c);
        first[j] = v & 0x0f0f0f0f;
        second[j] = (v >> 4) & 0x0f0f0f0f;
      }
#pragma GCC unroll 4
      for (int r = 0; r < MR; r++) {
        const int8_t* four = q + r * step + 4 * c;
        const auto digits = [&](int at) { return static_cast<int32_t>(word(four + at)); };
#pragma GCC unroll 2
        for (int j = 0; j < NB; j++) {
          high[r][j] = dot4_small(dot4_small(high[r][j], first[j], digits(0)), second[j], digits(16));
          low[r][j] = dot4_small(dot4_small(low[r][j], first[j], digits(32)), second[j], digits(48));
        }
      }
    }
    Floats d[NB], m[NB];
    for (int j = 0; j < NB; j++) {
      d[j] = load_f16(reinterpret_cast<const f16*>(p[j] + 256));
      m[j] = load_f16(reinterpret_cast<const f16*>(p[j] + 288));
      if (FIRST)
        for (int line = 0; line < kBlock4; line += 64) prefetch(p[j] + ahead + line);
      p[j] += kBlock4;
    }
#pragma GCC unroll 4
    for (int r = 0; r < MR; r++) {
      const size_t at = (row0 + r) * groups + g;
      const Floats scale = splat(x.scale[2 * at]), offset = splat(x.offset[at]);
#pragma GCC unroll 2
      for (int j = 0; j < NB; j++)
        acc[r][j] = fma(m[j], offset, fma(to_float((high[r][j] << 4) + low[r][j]) * scale, d[j], acc[r][j]));
    }
  }
}

template <int MR, int NB, bool FIRST>
inline void tile_q8(const Matrix& w, int b, const Rows& x, int t, Floats (&acc)[MR][NB]) {
  const size_t groups = static_cast<size_t>(w.groups()), row0 = static_cast<size_t>(t);
  const ptrdiff_t step = bytes_of(w.k);
  const uint8_t* scales = w.data + static_cast<size_t>(w.blocks()) * groups * kBlock8;
  const uint8_t* p[NB];
  const f16* d[NB];
  for (int j = 0; j < NB; j++) {
    p[j] = w.data + static_cast<size_t>(b + j) * groups * kBlock8;
    d[j] = reinterpret_cast<const f16*>(scales) + static_cast<size_t>(b + j) * groups * kRows;
  }
  for (size_t g = 0; g < groups; g++) {
    const int8_t* q = x.q + t * step + static_cast<ptrdiff_t>(g) * 2 * kGroup;
    Ints high[MR][NB], low[MR][NB];
    for (int r = 0; r < MR; r++) {
      const int32_t* total = x.total + ((row0 + r) * groups + g) * 2;
      for (int j = 0; j < NB; j++) high[r][j] = splat(signed_start(total[0])), low[r][j] = splat(signed_start(total[1]));
    }
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) {
      Ints v[NB];
      for (int j = 0; j < NB; j++) v[j] = load_words(p[j] + 64 * c);
#pragma GCC unroll 4
      for (int r = 0; r < MR; r++) {
        const int8_t* four = q + r * step + 4 * c;
#pragma GCC unroll 2
        for (int j = 0; j < NB; j++) {
          high[r][j] = dot4_signed(high[r][j], v[j], static_cast<int32_t>(word(four)));
          low[r][j] = dot4_signed(low[r][j], v[j], static_cast<int32_t>(word(four + kGroup)));
        }
      }
    }
    for (int j = 0; j < NB; j++) {
      const Floats by = load_f16(d[j]);
      for (int r = 0; r < MR; r++) {
        const Floats both = to_float((high[r][j] << 4) + low[r][j]) * splat(x.scale[((row0 + r) * groups + g) * 2]);
        acc[r][j] = fma(both, by, acc[r][j]);
      }
      if (FIRST)
        for (int line = 0; line < kBlock8; line += 64) prefetch(p[j] + kAhead * kBlock8 + line);
      p[j] += kBlock8;
      d[j] += kRows;
    }
  }
}
