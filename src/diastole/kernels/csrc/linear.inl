// Matrix kernels. Included by isa.inl; see kernels.hpp for the layouts.
//
// Whatever the number of rows that share a pass over the weights, a row's sums are made of the same operations in the
// same order: per half group an exact integer sum, then the same fused multiply-adds into one accumulator, groups
// ascending.

constexpr int kBlock4 = 320, kBlock8 = 512;

void quantize_row(const float* x, int k, int8_t* q, float* scale, float* offset, int32_t* total) {
  for (int f = 0; f < k / kFine; f++, x += kFine, q += kFine) {
    const F v = load(x);
    const float most = largest(abs(v));
    const I rounded = round_to_int(v * (most > 0 ? 127.f / most : 0.f));
    for (int i = 0; i < kFine; i++) q[i] = static_cast<int8_t>(rounded[i]);
    scale[f] = most / 127.f;
    total[f] = sum(rounded);
  }
  for (int g = 0; g < k / kGroup; g++)
    offset[g] = scale[2 * g] * static_cast<float>(total[2 * g]) + scale[2 * g + 1] * static_cast<float>(total[2 * g + 1]);
}

void prepare(Weight kind, const float* x, ptrdiff_t stride, Rows& rows, int t0, int t1) {
  const int k = rows.k, groups = k / kGroup;
  for (int t = t0; t < t1; t++) {
    const float* row = x + t * stride;
    if (kind == Weight::bf16) {
      for (int i = 0; i < k; i++) rows.h[static_cast<size_t>(t) * k + i] = to_bf16(row[i]);
    } else if (kind == Weight::q8 || kind == Weight::q4) {
      const size_t at = static_cast<size_t>(t) * groups;
      quantize_row(row, k, rows.q + static_cast<size_t>(t) * k, rows.scale + 2 * at, rows.offset + at, rows.total + 2 * at);
    }
  }
}

// ---- a tile: NB neighbouring row blocks x MR rows of x, sums left in acc

template <int MR, int NB>
inline void tile_q4(const Matrix& w, int b, const Rows& x, int t, F acc[MR][NB]) {
  const int k = w.k, groups = k / kGroup;
  const uint8_t* p[NB];
  for (int j = 0; j < NB; j++) p[j] = w.data + static_cast<size_t>(b + j) * groups * kBlock4;
  const int8_t* q = x.q + static_cast<size_t>(t) * k;
  const float* scale = x.scale + static_cast<size_t>(t) * 2 * groups;
  const float* offset = x.offset + static_cast<size_t>(t) * groups;
  for (int r = 0; r < MR; r++)
    for (int j = 0; j < NB; j++) acc[r][j] = F{};
  for (int g = 0; g < groups; g++) {
    I s[MR][NB], u[MR][NB];  // first and second half of the group
    for (int r = 0; r < MR; r++)
      for (int j = 0; j < NB; j++) s[r][j] = u[r][j] = I{};
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      B low[NB], high[NB];
      for (int j = 0; j < NB; j++) {
        const B v = load_bytes(p[j] + 64 * c);
        low[j] = v & 15;
        high[j] = (B)(((I)v >> 4) & 0x0f0f0f0f);
      }
#pragma GCC unroll 4
      for (int r = 0; r < MR; r++) {
        const int8_t* row = q + static_cast<size_t>(r) * k + g * kGroup;
        const int32_t first = quad(row + 4 * c), second = quad(row + 16 + 4 * c);
#pragma GCC unroll 2
        for (int j = 0; j < NB; j++) {
          s[r][j] = dot4_small(s[r][j], low[j], first);
          u[r][j] = dot4_small(u[r][j], high[j], second);
        }
      }
    }
    F d[NB], m[NB];
    for (int j = 0; j < NB; j++) {
      d[j] = load_f16(reinterpret_cast<const f16*>(p[j] + 256));
      m[j] = load_f16(reinterpret_cast<const f16*>(p[j] + 288));
      if (MR == 1)
        for (int line = 0; line < 5; line++) prefetch(p[j] + 8 * kBlock4 + 64 * line);
      p[j] += kBlock4;
    }
#pragma GCC unroll 4
    for (int r = 0; r < MR; r++) {
      const float* dx = scale + (static_cast<size_t>(r) * groups + g) * 2;
      const F first = splat(dx[0]), second = splat(dx[1]), sx = splat(offset[static_cast<size_t>(r) * groups + g]);
#pragma GCC unroll 2
      for (int j = 0; j < NB; j++) {
        const F both = fma(to_float(u[r][j]), second, to_float(s[r][j]) * first);
        acc[r][j] = fma(m[j], sx, fma(both, d[j], acc[r][j]));
      }
    }
  }
}

template <int MR, int NB>
inline void tile_q8(const Matrix& w, int b, const Rows& x, int t, F acc[MR][NB]) {
  const int k = w.k, groups = k / kGroup;
  const size_t blocks = static_cast<size_t>((w.n + kRows - 1) / kRows) * groups;
  const f16* scales = reinterpret_cast<const f16*>(w.data + blocks * kBlock8);
  const uint8_t* p[NB];
  const f16* d[NB];
  for (int j = 0; j < NB; j++) {
    p[j] = w.data + static_cast<size_t>(b + j) * groups * kBlock8;
    d[j] = scales + static_cast<size_t>(b + j) * groups * kRows;
  }
  const int8_t* q = x.q + static_cast<size_t>(t) * k;
  const float* scale = x.scale + static_cast<size_t>(t) * 2 * groups;
  const int32_t* total = x.total + static_cast<size_t>(t) * 2 * groups;
  for (int r = 0; r < MR; r++)
    for (int j = 0; j < NB; j++) acc[r][j] = F{};
  for (int g = 0; g < groups; g++) {
    F both[MR][NB];
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      I s[MR][NB];
      for (int r = 0; r < MR; r++)
        for (int j = 0; j < NB; j++) s[r][j] = signed_start(total[(static_cast<size_t>(r) * groups + g) * 2 + half]);
#pragma GCC unroll 4
      for (int c = 4 * half; c < 4 * half + 4; c++) {
        B v[NB];
        for (int j = 0; j < NB; j++) v[j] = load_bytes(p[j] + 64 * c);
#pragma GCC unroll 4
        for (int r = 0; r < MR; r++) {
          const int32_t b4 = quad(q + static_cast<size_t>(r) * k + g * kGroup + 4 * c);
#pragma GCC unroll 2
          for (int j = 0; j < NB; j++) s[r][j] = dot4_signed(s[r][j], v[j], b4);
        }
      }
      for (int r = 0; r < MR; r++) {
        const F dx = splat(scale[(static_cast<size_t>(r) * groups + g) * 2 + half]);
        for (int j = 0; j < NB; j++) both[r][j] = half ? fma(to_float(s[r][j]), dx, both[r][j]) : to_float(s[r][j]) * dx;
      }
    }
    for (int j = 0; j < NB; j++) {
      const F dj = load_f16(d[j]);
      for (int r = 0; r < MR; r++) acc[r][j] = fma(both[r][j], dj, acc[r][j]);
      if (MR == 1)
        for (int line = 0; line < 8; line++) prefetch(p[j] + 8 * kBlock8 + 64 * line);
      p[j] += kBlock8;
      d[j] += kRows;
    }
  }
}

template <int MR, int NB>
inline void tile_bf16(const Matrix& w, int b, const Rows& x, int t, F acc[MR][NB]) {
  const int k = w.k;
  const uint8_t* p[NB];
  for (int j = 0; j < NB; j++) p[j] = w.data + static_cast<size_t>(b + j) * k * 2 * kRows;
  for (int r = 0; r < MR; r++)
    for (int j = 0; j < NB; j++) acc[r][j] = F{};
  for (int i = 0; i < k; i += 2) {
    B v[NB];
    for (int j = 0; j < NB; j++) {
      v[j] = load_bytes(p[j] + static_cast<size_t>(i) * 2 * kRows);
      if (MR == 1) prefetch(p[j] + static_cast<size_t>(i) * 2 * kRows + 2048);
    }
#pragma GCC unroll 4
    for (int r = 0; r < MR; r++) {
      const uint32_t two = pair(x.h + static_cast<size_t>(t + r) * k + i);
#pragma GCC unroll 2
      for (int j = 0; j < NB; j++) acc[r][j] = dot2(acc[r][j], v[j], two);
    }
  }
}

template <int MR, int NB>
inline void tile_f32(const Matrix& w, int b, const Rows& x, int t, F acc[MR][NB]) {
  const int k = w.k;
  const float* p[NB];
  for (int j = 0; j < NB; j++) p[j] = reinterpret_cast<const float*>(w.data) + static_cast<size_t>(b + j) * k * kRows;
  for (int r = 0; r < MR; r++)
    for (int j = 0; j < NB; j++) acc[r][j] = F{};
  for (int i = 0; i < k; i++) {
    F v[NB];
    for (int j = 0; j < NB; j++) v[j] = load(p[j] + static_cast<size_t>(i) * kRows);
#pragma GCC unroll 4
    for (int r = 0; r < MR; r++) {
      const F xi = splat(x.f[(t + r) * x.stride + i]);
#pragma GCC unroll 2
      for (int j = 0; j < NB; j++) acc[r][j] = fma(v[j], xi, acc[r][j]);
    }
  }
}

inline void put(const Matrix& w, const Out& out, int b, int t, F v) {
  const int first = b * kRows, lanes = w.n - first < kRows ? w.n - first : kRows;
  float* y = out.y + t * out.stride + first;
  if (lanes == kRows) {
    if (out.bias) v += load(out.bias + first);
    store(y, out.add ? load(y) + v : v);
    return;
  }
  for (int i = 0; i < lanes; i++) {
    const float value = v[i] + (out.bias ? out.bias[first + i] : 0.f);
    y[i] = out.add ? y[i] + value : value;
  }
}

template <Weight KIND, int MR, int NB>
inline void tile(const Matrix& w, const Rows& x, const Out& out, int b, int t) {
  F acc[MR][NB];
  if constexpr (KIND == Weight::q4) tile_q4<MR, NB>(w, b, x, t, acc);
  if constexpr (KIND == Weight::q8) tile_q8<MR, NB>(w, b, x, t, acc);
  if constexpr (KIND == Weight::bf16) tile_bf16<MR, NB>(w, b, x, t, acc);
  if constexpr (KIND == Weight::f32) tile_f32<MR, NB>(w, b, x, t, acc);
  for (int r = 0; r < MR; r++)
    for (int j = 0; j < NB; j++) put(w, out, b + j, t + r, acc[r][j]);
}

template <Weight KIND, int NB>
inline void column(const Matrix& w, const Rows& x, const Out& out, int b, int t0, int t1) {
  int t = t0;
  for (; t + 4 <= t1; t += 4) tile<KIND, 4, NB>(w, x, out, b, t);
  switch (t1 - t) {
    case 3: tile<KIND, 3, NB>(w, x, out, b, t); break;
    case 2: tile<KIND, 2, NB>(w, x, out, b, t); break;
    case 1: tile<KIND, 1, NB>(w, x, out, b, t); break;
  }
}

template <Weight KIND>
void multiply_kind(const Matrix& w, const Rows& x, const Out& out, int b0, int b1, int t0, int t1) {
  int b = b0;
  // Two blocks at a time reuse what is loaded of x; a single row is bound by the weights, one stream is enough.
  if (t1 - t0 > 1)
    for (; b + 2 <= b1; b += 2) column<KIND, 2>(w, x, out, b, t0, t1);
  for (; b < b1; b++) column<KIND, 1>(w, x, out, b, t0, t1);
}

void multiply(const Matrix& w, const Rows& x, const Out& out, int b0, int b1, int t0, int t1) {
  switch (w.kind) {
    case Weight::q4: return multiply_kind<Weight::q4>(w, x, out, b0, b1, t0, t1);
    case Weight::q8: return multiply_kind<Weight::q8>(w, x, out, b0, b1, t0, t1);
    case Weight::bf16: return multiply_kind<Weight::bf16>(w, x, out, b0, b1, t0, t1);
    case Weight::f32: return multiply_kind<Weight::f32>(w, x, out, b0, b1, t0, t1);
  }
}

// ---- single rows of a packed matrix

inline float half(const f16* p) {  // one f16, by way of a vector of them
  f16 lanes[kRows] = {*p};
  return load_f16(lanes)[0];
}

void embed_row(const Matrix& w, int id, float* out) {
  const int b = id / kRows, r = id % kRows, groups = w.k / kGroup;
  const size_t first = static_cast<size_t>(b) * groups;
  switch (w.kind) {
    case Weight::q4:
      for (int g = 0; g < groups; g++) {
        const uint8_t* p = w.data + (first + g) * kBlock4;
        const float d = half(reinterpret_cast<const f16*>(p + 256) + r), m = half(reinterpret_cast<const f16*>(p + 288) + r);
        for (int i = 0; i < 16; i++) {
          const uint8_t v = p[(i / 4) * 64 + r * 4 + i % 4];
          out[g * kGroup + i] = d * static_cast<float>(v & 15) + m;
          out[g * kGroup + 16 + i] = d * static_cast<float>(v >> 4) + m;
        }
      }
      return;
    case Weight::q8: {
      const size_t blocks = static_cast<size_t>((w.n + kRows - 1) / kRows) * groups;
      const f16* scales = reinterpret_cast<const f16*>(w.data + blocks * kBlock8);
      for (int g = 0; g < groups; g++) {
        const uint8_t* p = w.data + (first + g) * kBlock8;
        const float d = half(scales + (first + g) * kRows + r);
        for (int i = 0; i < kGroup; i++)
          out[g * kGroup + i] = d * static_cast<float>(static_cast<int8_t>(p[(i / 4) * 64 + r * 4 + i % 4]));
      }
      return;
    }
    case Weight::bf16: {
      const bf16* p = reinterpret_cast<const bf16*>(w.data) + static_cast<size_t>(b) * w.k * kRows;
      for (int i = 0; i < w.k; i++) out[i] = from_bf16(p[(i / 2) * 32 + r * 2 + i % 2]);
      return;
    }
    case Weight::f32: {
      const float* p = reinterpret_cast<const float*>(w.data) + static_cast<size_t>(b) * w.k * kRows;
      for (int i = 0; i < w.k; i++) out[i] = p[i * kRows + r];
      return;
    }
  }
}

void embed(const Matrix& w, const int32_t* ids, float* out, ptrdiff_t stride, int t0, int t1) {
  for (int t = t0; t < t1; t++) embed_row(w, ids[t], out + t * stride);
}
