// Activations of integer matrices in eight bits, one scale for sixteen columns. Included by linear.inl.

void quantize_row(const float* x, int k, int8_t* q, float* scale, int32_t* total, float* offset) {
  for (int g = 0; g < k / kGroup; g++, scale += 2, total += 2) {
    for (int half = 0; half < 2; half++, x += kFine, q += kFine) {
      const Floats v = load(x);
      const float most = as_float(largest(magnitude(v)));  // NaN if one is, and so is the scale
      const Ints rounded = round_to_int(v * (most > 0 ? 127.f / most : 0.f));
      narrow8(rounded, q);
      scale[half] = most / 127.f;
      total[half] = sum(rounded);
    }
    offset[g] = scale[0] * static_cast<float>(total[0]) + scale[1] * static_cast<float>(total[1]);
  }
}

// Groups first..last of row t, which are at x.
inline void split_groups(const Rows& rows, int t, const float* x, int first, int last) {
  const size_t at = static_cast<size_t>(t) * (static_cast<size_t>(rows.k) / kGroup) + static_cast<size_t>(first);
  quantize_row(x, (last - first) * kGroup, rows.q + at * kGroup, rows.scale + 2 * at, rows.total + 2 * at, rows.offset + at);
}

template <Weight KIND, int MR, int NB, Fetch FETCH, class From>
inline void tile_q4(const Matrix& w, const From (&from)[NB], const Rows& x, int t, Floats (&acc)[MR][NB]) {
  const size_t k = static_cast<size_t>(w.k), groups = static_cast<size_t>(w.groups()), row0 = static_cast<size_t>(t);
  // Several rows of blocks: the same place in those that come next, if they fit beside these.
  const size_t own = NB * four_bytes(KIND, w.groups()), ahead = NB > 1 && own <= kNear ? own : kAhead * kBlock4;
  Errand errand(FETCH == Fetch::errands ? x.errands : nullptr, groups, from[0].at(0));
  for (size_t g = 0; g < groups; g++) {
    if (FETCH == Fetch::errands) errand.go();
    const int8_t* q = x.q + row0 * k + g * kGroup;
    Ints s[MR][NB], u[MR][NB];  // sums of the first and of the second half of the group
    for (int r = 0; r < MR; r++) {
      const int32_t* total = x.total + ((row0 + r) * groups + g) * 2;
      for (int j = 0; j < NB; j++) s[r][j] = splat(-kZero<KIND> * total[0]), u[r][j] = splat(-kZero<KIND> * total[1]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      Ints low[NB], high[NB];
      for (int j = 0; j < NB; j++) {
        const Ints v = load_words(from[j].at(g) + 64 * c);
        low[j] = v & 0x0f0f0f0f;
        high[j] = (v >> 4) & 0x0f0f0f0f;
      }
#pragma GCC unroll 4
      for (int r = 0; r < MR; r++) {
        const int32_t first = static_cast<int32_t>(word(q + r * k + 4 * c));
        const int32_t second = static_cast<int32_t>(word(q + r * k + kFine + 4 * c));
#pragma GCC unroll 2
        for (int j = 0; j < NB; j++) {
          s[r][j] = dot4_small(s[r][j], low[j], first);
          u[r][j] = dot4_small(u[r][j], high[j], second);
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
      const Floats first = splat(x.scale[2 * at]), second = splat(x.scale[2 * at + 1]), offset = splat(x.offset[at]);
#pragma GCC unroll 2
      for (int j = 0; j < NB; j++) {
        const Floats both = fma(to_float(u[r][j]), second, to_float(s[r][j]) * first);
        acc[r][j] = fma(both, d[j], acc[r][j]);
        if (KIND != Weight::q4s) acc[r][j] = fma(m[j], offset, acc[r][j]);
      }
    }
  }
  for (int r = 0; r < MR; r++)
    for (int j = 0; j < NB; j++) acc[r][j] = from[j].close(acc[r][j]);
}

template <int MR, int NB, Fetch FETCH>
inline void tile_q8(const Matrix& w, int b, const Rows& x, int t, Floats (&acc)[MR][NB]) {
  const size_t k = static_cast<size_t>(w.k), groups = static_cast<size_t>(w.groups()), row0 = static_cast<size_t>(t);
  const uint8_t* scales = w.data + static_cast<size_t>(w.blocks()) * groups * kBlock8;
  const uint8_t* p[NB];
  const f16* d[NB];
  for (int j = 0; j < NB; j++) {
    p[j] = w.data + static_cast<size_t>(b + j) * groups * kBlock8;
    d[j] = reinterpret_cast<const f16*>(scales) + static_cast<size_t>(b + j) * groups * kRows;
  }
  for (size_t g = 0; g < groups; g++) {
    const int8_t* q = x.q + row0 * k + g * kGroup;
    Floats both[MR][NB];
    for (int r = 0; r < MR; r++)
      for (int j = 0; j < NB; j++) both[r][j] = splat(0.f);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      Ints s[MR][NB];
      for (int r = 0; r < MR; r++)
        for (int j = 0; j < NB; j++) s[r][j] = splat(signed_start(x.total[((row0 + r) * groups + g) * 2 + half]));
#pragma GCC unroll 4
      for (int c = 4 * half; c < 4 * half + 4; c++) {
        Ints v[NB];
        for (int j = 0; j < NB; j++) v[j] = load_words(p[j] + 64 * c);
#pragma GCC unroll 4
        for (int r = 0; r < MR; r++) {
          const int32_t four = static_cast<int32_t>(word(q + r * k + 4 * c));
#pragma GCC unroll 2
          for (int j = 0; j < NB; j++) s[r][j] = dot4_signed(s[r][j], v[j], four);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < MR; r++) {
        const Floats dx = splat(x.scale[((row0 + r) * groups + g) * 2 + half]);
#pragma GCC unroll 2
        for (int j = 0; j < NB; j++) both[r][j] = fma(to_float(s[r][j]), dx, both[r][j]);
      }
    }
    for (int j = 0; j < NB; j++) {
      const Floats scale = load_f16(d[j]);
      for (int r = 0; r < MR; r++) acc[r][j] = fma(both[r][j], scale, acc[r][j]);
      if (FETCH == Fetch::weights)
        for (int line = 0; line < kBlock8; line += 64) prefetch(p[j] + kAhead * kBlock8 + line);
      p[j] += kBlock8;
      d[j] += kRows;
    }
  }
}
