// Matrix kernels. Included by isa.inl; see kernels.hpp for the layouts.
//
// However many rows share a pass over the weights, a row's sums are made of the same operations in the same order: exact
// integer sums, then the same fused multiply-adds into one accumulator, groups ascending.

#if defined(__AVX512F__)
constexpr int kPair = 2;  // row blocks that one tile multiplies, so that what is loaded of x is used twice
#else
constexpr int kPair = 1;
#endif
constexpr int kAhead = 24;              // blocks of weights fetched ahead where weights are read once
constexpr size_t kNear = 32 << 10;     // bytes that the nearest cache holds
constexpr int kSeveral = 8;             // rows from which factors in bytes are opened beforehand

// ---- activations

void to_bf16(const float* x, int k, bf16* h) {
  int i = 0;
  for (; i + 16 <= k; i += 16) store_bf16(h + i, load(x + i));
  if (i < k) {
    float rest[16] = {};
    bf16 rounded[16];
    std::memcpy(rest, x + i, sizeof(float) * static_cast<size_t>(k - i));
    store_bf16(rounded, load(rest));
    std::memcpy(h + i, rounded, sizeof(bf16) * static_cast<size_t>(k - i));
  }
}

// ---- what a tile fetches meanwhile

enum class Fetch {
  nothing,
  weights,  // that come after its own: nobody has touched them in this pass
  errands,
};
constexpr int kErrand = 6;  // lines of these, with every group of columns

inline bool pending(const Errands* all) {
  return all != nullptr && all->next->load(std::memory_order_relaxed) < all->lines;
}

// What one tile fetches of them; if somebody else was faster, a line of its own again and again.
struct Errand {
  Errand(const Errands* all, size_t groups, const uint8_t* own) : p(own), step(0) {
    if (all == nullptr) return;
    const uint32_t at = all->next->fetch_add(static_cast<uint32_t>(groups) * kErrand, std::memory_order_relaxed);
    if (at >= all->lines) return;
    const uint32_t run = static_cast<uint32_t>(all->each / 64);
    p = all->base + static_cast<size_t>(all->runs[at / run]) * all->each + static_cast<size_t>(at % run) * 64;
    step = 64 * kErrand;
  }
  void go() {
    for (int i = 0; i < kErrand; i++) prefetch(p + 64 * i);
    p += step;
  }

  const uint8_t* p;
  ptrdiff_t step;
};

// ---- a tile: MR rows of x from t on, times NB row blocks from b on

#include "fours.inl"

#if defined(__AMX_TILE__)
#include "linear_digits.inl"
#else
#include "linear_fine.inl"
#endif

template <int MR, int NB, Fetch FETCH>
inline void tile_bf16(const Matrix& w, int b, const Rows& x, int t, Floats (&acc)[MR][NB]) {
  const size_t k = static_cast<size_t>(w.k);
  const bf16* h = x.h + static_cast<size_t>(t) * k;
  const uint8_t* p[NB];
  for (int j = 0; j < NB; j++) p[j] = w.data + static_cast<size_t>(b + j) * k * 2 * kRows;
  for (size_t i = 0; i < k; i += 2) {
    Ints v[NB];
    for (int j = 0; j < NB; j++) {
      v[j] = load_words(p[j] + i * 2 * kRows);
      if (FETCH == Fetch::weights) prefetch(p[j] + i * 2 * kRows + kAhead * 256);
    }
#pragma GCC unroll 4
    for (int r = 0; r < MR; r++) {
      const uint32_t two = word(h + r * k + i);
#pragma GCC unroll 2
      for (int j = 0; j < NB; j++) acc[r][j] = dot2(acc[r][j], v[j], two);
    }
  }
}

template <int MR, int NB, Fetch FETCH>
inline void tile_f32(const Matrix& w, int b, const Rows& x, int t, Floats (&acc)[MR][NB]) {
  const size_t k = static_cast<size_t>(w.k);
  const float* p[NB];
  for (int j = 0; j < NB; j++) p[j] = reinterpret_cast<const float*>(w.data) + static_cast<size_t>(b + j) * k * kRows;
  for (size_t i = 0; i < k; i++) {
    Floats v[NB];
    for (int j = 0; j < NB; j++) {
      v[j] = load(p[j] + i * kRows);
      if (FETCH == Fetch::weights) prefetch(p[j] + i * kRows + kAhead * 64);
    }
#pragma GCC unroll 4
    for (int r = 0; r < MR; r++) {
      const Floats xi = splat(x.f[(t + r) * x.stride + static_cast<ptrdiff_t>(i)]);
#pragma GCC unroll 2
      for (int j = 0; j < NB; j++) acc[r][j] = fma(v[j], xi, acc[r][j]);
    }
  }
}

// ---- from a tile to where it goes

// Sixteen outputs of one row, fewer at the end of a matrix whose n is no multiple of 16.
inline void put(const Matrix& w, const Out& out, int b, int t, Floats v) {
  const int first = b * kRows, lanes = w.n - first < kRows ? w.n - first : kRows;
  float* y = out.y + t * out.stride + first;
  if (lanes == kRows) {
    if (out.bias) v = v + load(out.bias + first);
    store(y, out.add ? load(y) + v : v);
    return;
  }
  float value[kRows];
  store(value, v);
  for (int i = 0; i < lanes; i++) {
    if (out.bias) value[i] += out.bias[first + i];
    y[i] = out.add ? y[i] + value[i] : value[i];
  }
}

// from: the rows of blocks of four-bit weights, as something that opens them.
template <Weight KIND, int MR, int NB, Fetch FETCH, class From>
inline void tile(const Matrix& w, const Rows& x, const Out& out, int b, int t, const From (&from)[NB]) {
  Floats acc[MR][NB];
  for (int r = 0; r < MR; r++)
    for (int j = 0; j < NB; j++) acc[r][j] = splat(0.f);
  if constexpr (is_four(KIND)) tile_q4<KIND, MR, NB, FETCH>(w, from, x, t, acc);
  if constexpr (KIND == Weight::q8) tile_q8<MR, NB, FETCH>(w, b, x, t, acc);
  if constexpr (KIND == Weight::bf16) tile_bf16<MR, NB, FETCH>(w, b, x, t, acc);
  if constexpr (KIND == Weight::f32) tile_f32<MR, NB, FETCH>(w, b, x, t, acc);
  for (int r = 0; r < MR; r++)
    for (int j = 0; j < NB; j++) put(w, out, b + j, t + r, acc[r][j]);
}

#if defined(__AMX_TILE__)
constexpr bool kTiles = true;
#include "linear_amx.inl"
#else
constexpr bool kTiles = false;
#endif

// ---- rows of x

void prepare(Weight kind, const Rows& rows, const Patch& from) {
  const int first = from.c0 / kGroup, last = from.c1 / kGroup;
  const float* x = from.x;
  for (int t = from.t0; t < from.t1; t++, x += from.stride) {
#if defined(__AMX_TILE__)
    if (on_tiles(kind, rows)) {
      lay_groups(kind, rows, t, x, first, last);
      continue;
    }
#endif
    if (kind == Weight::q8 || is_four(kind)) split_groups(rows, t, x, first, last);
    if (kind == Weight::bf16) to_bf16(x, from.c1 - from.c0, rows.h + static_cast<size_t>(t) * rows.k + from.c0);
  }
}

// ---- all rows

// All rows t0..t1 against NB row blocks, which stay in the nearest cache meanwhile. Several rows take long enough over
// sixteen or more bits per weight for the processor to fetch ahead by itself: there, telling it costs more than it brings.
template <Weight KIND, int NB, class From>
inline void column(const Matrix& w, const Rows& x, const Out& out, int b, int t0, int t1, const From (&from)[NB]) {
  constexpr bool kDense = KIND == Weight::q8 || is_four(KIND);
  constexpr Fetch kWeights = kDense ? Fetch::weights : Fetch::nothing;
  const auto rest = [&](auto fetch) {
    constexpr Fetch kFetch = decltype(fetch)::value;
    const int left = (t1 - t0) % 4, t = t1 - left;
    if (left == 3) tile<KIND, 3, NB, kFetch>(w, x, out, b, t, from);
    if (left == 2) tile<KIND, 2, NB, kFetch>(w, x, out, b, t, from);
    if (left == 1) tile<KIND, 1, NB, kFetch>(w, x, out, b, t, from);
  };
  if (t1 - t0 < 4) return rest(std::integral_constant<Fetch, kDense || NB == 1 ? Fetch::weights : Fetch::nothing>());
  tile<KIND, 4, NB, kWeights>(w, x, out, b, t0, from);
  for (int t = t0 + 4; t + 4 <= t1; t += 4) {
    if (is_four(KIND) && pending(x.errands))
      tile<KIND, 4, NB, is_four(KIND) ? Fetch::errands : Fetch::nothing>(w, x, out, b, t, from);
    else
      tile<KIND, 4, NB, Fetch::nothing>(w, x, out, b, t, from);
  }
  rest(std::integral_constant<Fetch, Fetch::nothing>());
}

// The same for weights of any kind. shelf: for factors in bytes, which several rows want opened.
template <Weight KIND, int NB>
inline void columns(const Matrix& w, const Rows& x, const Out& out, int b, int t0, int t1, uint8_t* shelf) {
  if constexpr (is_four(KIND)) {
    Fours<KIND> from[NB];
    for (int j = 0; j < NB; j++) from[j] = Fours<KIND>(w, b + j);
    if constexpr (KIND == Weight::q4b) {
      if (t1 - t0 >= kSeveral) {
        Opened<KIND> opened[NB];
        float* memory = reinterpret_cast<float*>(shelf);
        for (int j = 0; j < NB; j++) opened[j] = Opened<KIND>(from[j], w.groups(), memory + j * w.groups() * 2 * kRows);
        return column<KIND, NB>(w, x, out, b, t0, t1, opened);
      }
    }
    column<KIND, NB>(w, x, out, b, t0, t1, from);
  } else {
    const int none[NB] = {};
    column<KIND, NB>(w, x, out, b, t0, t1, none);
  }
}

template <Weight KIND>
void multiply_kind(const Matrix& w, const Rows& x, const Out& out, int b0, int b1, int t0, int t1, uint8_t* shelf) {
#if defined(__AMX_TILE__)
  if constexpr (KIND != Weight::f32) {
    if (on_tiles(KIND, x)) return multiply_tiles<KIND>(w, x, out, b0, b1, t0, t1, shelf);
  }
#endif
  int b = b0;
  if (t1 - t0 > 1)  // a single row is bound by reading the weights: one stream is enough
    for (; b + kPair <= b1; b += kPair) columns<KIND, kPair>(w, x, out, b, t0, t1, shelf);
  for (; b < b1; b++) columns<KIND, 1>(w, x, out, b, t0, t1, shelf);
}

void multiply(const Matrix& w, const Rows& x, const Out& out, int b0, int b1, int t0, int t1, uint8_t* shelf) {
  switch (w.kind) {
    case Weight::q4: return multiply_kind<Weight::q4>(w, x, out, b0, b1, t0, t1, shelf);
    case Weight::q4s: return multiply_kind<Weight::q4s>(w, x, out, b0, b1, t0, t1, shelf);
    case Weight::q4b: return multiply_kind<Weight::q4b>(w, x, out, b0, b1, t0, t1, shelf);
    case Weight::q8: return multiply_kind<Weight::q8>(w, x, out, b0, b1, t0, t1, shelf);
    case Weight::bf16: return multiply_kind<Weight::bf16>(w, x, out, b0, b1, t0, t1, shelf);
    case Weight::f32: return multiply_kind<Weight::f32>(w, x, out, b0, b1, t0, t1, shelf);
  }
}

// ---- one row of a packed matrix

template <Weight KIND>
void embed_fours(const Matrix& w, int id, float* out) {
  const Fours<KIND> from(w, id / kRows);
  const size_t r = static_cast<size_t>(id % kRows), groups = static_cast<size_t>(w.groups());
  float by[kRows], plus[kRows];
  for (size_t g = 0; g < groups; g++, out += kGroup) {
    Floats d, m = splat(0.f);
    from.open(g, d, m);
    store(by, from.close(d));
    store(plus, from.close(m));
    for (size_t i = 0; i < 16; i++) {
      const uint8_t both = from.at(g)[(i / 4) * 64 + r * 4 + i % 4];
      out[i] = by[r] * static_cast<float>((both & 15) - kZero<KIND>) + plus[r];
      out[16 + i] = by[r] * static_cast<float>((both >> 4) - kZero<KIND>) + plus[r];
    }
  }
}

inline float widen(const uint8_t* p) {  // one f16, by way of a vector of them
  f16 half[kRows] = {};
  float lanes[kRows];
  std::memcpy(half, p, sizeof(f16));
  store(lanes, load_f16(half));
  return lanes[0];
}

void embed_row(const Matrix& w, int id, float* out) {
  const size_t r = static_cast<size_t>(id % kRows), groups = static_cast<size_t>(w.groups());
  const size_t b = static_cast<size_t>(id / kRows), k = static_cast<size_t>(w.k);
  if (w.kind == Weight::q4) return embed_fours<Weight::q4>(w, id, out);
  if (w.kind == Weight::q4s) return embed_fours<Weight::q4s>(w, id, out);
  if (w.kind == Weight::q4b) return embed_fours<Weight::q4b>(w, id, out);
  if (w.kind == Weight::q8) {
    const uint8_t* scales = w.data + static_cast<size_t>(w.blocks()) * groups * kBlock8;
    for (size_t g = 0; g < groups; g++, out += kGroup) {
      const int8_t* p = reinterpret_cast<const int8_t*>(w.data + (b * groups + g) * kBlock8);
      const float d = widen(scales + ((b * groups + g) * kRows + r) * 2);
      for (size_t i = 0; i < kGroup; i++) out[i] = d * static_cast<float>(p[(i / 4) * 64 + r * 4 + i % 4]);
    }
  } else if (w.kind == Weight::bf16) {
    const bf16* p = reinterpret_cast<const bf16*>(w.data) + b * static_cast<size_t>(w.k) * kRows;
    for (size_t i = 0; i < k; i++) out[i] = from_bf16(p[(i / 2) * 2 * kRows + r * 2 + i % 2]);
  } else {
    const float* p = reinterpret_cast<const float*>(w.data) + b * k * kRows;
    for (size_t i = 0; i < k; i++) out[i] = p[i * kRows + r];
  }
}

void embed(const Matrix& w, const int32_t* ids, float* out, ptrdiff_t stride, int t0, int t1) {
  for (int t = t0; t < t1; t++) embed_row(w, ids[t], out + t * stride);
}
