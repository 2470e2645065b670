// Activations of integer matrices where there are tile registers. Included by linear.inl.
//
// Tiles want bf16, but opening weights to tiles pays only for several rows of x, and a row must give the same bits alone
// and in a crowd. So bf16 numbers are rounded once more, to multiples of a power of two for a group of 32 columns, about
// a four-thousandth of the largest. Then a tile's sum over a group has less than 24 bits and is exact, and so is the sum
// of whole numbers that vectors make for few rows: 64 hi + lo, both in eight bits.

constexpr int kDigitBits = 6;
constexpr int kFew = 6;              // rows for which vectors are faster than tiles
constexpr int kDigits = 2 * kGroup;  // bytes of a group of a row: [hi 32 | lo 32]

// A group of 32 columns: unit times a, and unit times b.
struct Numbers {
  explicit Numbers(const float* x) {
    const Ints both = (Ints)_mm512_cvtne2ps_pbh((__m512)load(x + 16), (__m512)load(x));  // first halves in the lower half
    const Floats first = from_bits((Ints)_mm512_cvtepu16_epi32(_mm512_castsi512_si256((__m512i)both)) << 16);
    const Floats second = from_bits((Ints)_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64((__m512i)both, 1)) << 16);
    const int32_t exponent = largest(max(magnitude(first), magnitude(second))) >> 23;
    const bool finite = exponent < 255, some = exponent > 37;  // below 2^-90 nothing is left
    unit = !finite ? __builtin_nanf("") : some ? as_float((exponent - 11) << 23) : 0.f;  // |a|, |b| <= 2^12
    const Floats inverse = splat(finite && some ? as_float((265 - exponent) << 23) : 0.f);
    a = round_to_int(first * inverse);
    b = round_to_int(second * inverse);
  }
  float offset() const { return unit * static_cast<float>(sum(a + b)); }

  float unit;
  Ints a, b;
};

inline void store_digits(Ints v, int8_t* high, int8_t* low) {
  const Ints upper = (v + (1 << (kDigitBits - 1))) >> kDigitBits;
  narrow8(upper, high);
  narrow8(v - (upper << kDigitBits), low);
}

// Groups first..last of row t, which are at x.
inline void split_groups(const Rows& rows, int t, const float* x, int first, int last) {
  size_t at = static_cast<size_t>(t) * (static_cast<size_t>(rows.k) / kGroup) + static_cast<size_t>(first);
  for (int g = first; g < last; g++, at++, x += kGroup) {
    const Numbers n(x);
    int8_t* q = rows.q + at * kDigits;
    store_digits(n.a, q, q + kGroup);
    store_digits(n.b, q + 16, q + kGroup + 16);
    rows.scale[at] = n.unit;
    rows.offset[at] = n.offset();
    const auto sums = [](Ints v) { return (v + (1 << (kDigitBits - 1))) >> kDigitBits; };
    const int32_t high = sum(sums(n.a) + sums(n.b));
    rows.total[2 * at] = high;
    rows.total[2 * at + 1] = sum(n.a + n.b) - (high << kDigitBits);
  }
}

template <Weight KIND, int MR, int NB, Fetch FETCH, class From>
inline void tile_q4(const Matrix& w, const From (&from)[NB], const Rows& x, int t, Floats (&acc)[MR][NB]) {
  const size_t groups = static_cast<size_t>(w.groups()), row0 = static_cast<size_t>(t);
  const ptrdiff_t step = 2 * static_cast<ptrdiff_t>(w.k);
  const size_t own = NB * four_bytes(KIND, w.groups()), ahead = NB > 1 && own <= kNear ? own : kAhead * kBlock4;
  for (size_t g = 0; g < groups; g++) {
    const int8_t* q = x.q + t * step + static_cast<ptrdiff_t>(g) * 2 * kGroup;
    Ints high[MR][NB], low[MR][NB];  // sums of the digits
    for (int r = 0; r < MR; r++) {
      const int32_t* total = x.total + ((row0 + r) * groups + g) * 2;
      for (int j = 0; j < NB; j++) high[r][j] = splat(-kZero<KIND> * total[0]), low[r][j] = splat(-kZero<KIND> * total[1]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      Ints first[NB], second[NB];  // weights of columns 4c and of columns 16+4c
      for (int j = 0; j < NB; j++) {
        const Ints v = load_words(from[j].at(g) + 64 * c);
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
      from[j].open(g, d[j], m[j]);
      if (FETCH == Fetch::weights) from[j].fetch(g, ahead);
    }
#pragma GCC unroll 4
    for (int r = 0; r < MR; r++) {
      const size_t at = (row0 + r) * groups + g;
      const Floats scale = splat(x.scale[at]), offset = splat(x.offset[at]);
#pragma GCC unroll 2
      for (int j = 0; j < NB; j++) {
        acc[r][j] = fma(to_float((high[r][j] << kDigitBits) + low[r][j]) * scale, d[j], acc[r][j]);
        if (KIND != Weight::q4s) acc[r][j] = fma(m[j], offset, acc[r][j]);
      }
    }
  }
  for (int r = 0; r < MR; r++)
    for (int j = 0; j < NB; j++) acc[r][j] = from[j].close(acc[r][j]);
}

template <int MR, int NB, Fetch FETCH>
inline void tile_q8(const Matrix& w, int b, const Rows& x, int t, Floats (&acc)[MR][NB]) {
  const size_t groups = static_cast<size_t>(w.groups()), row0 = static_cast<size_t>(t);
  const ptrdiff_t step = 2 * static_cast<ptrdiff_t>(w.k);
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
        const Floats both = to_float((high[r][j] << kDigitBits) + low[r][j]) * splat(x.scale[(row0 + r) * groups + g]);
        acc[r][j] = fma(both, by, acc[r][j]);
      }
      if (FETCH == Fetch::weights)
        for (int line = 0; line < kBlock8; line += 64) prefetch(p[j] + kAhead * kBlock8 + line);
      p[j] += kBlock8;
      d[j] += kRows;
    }
  }
}
