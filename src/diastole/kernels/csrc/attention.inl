// Paged keys and values, and attention over them. Included by isa.inl.
//
// One page of one head holds 64 tokens, keys with tokens in the lanes and values with dimensions in the lanes:
//
//   f32    K [4][dim][16 tokens]            V [64 tokens][dim]
//   bf16   K [4][dim/2][16 tokens][2]       V [32 pairs of tokens][dim][2]
//   int8   K [4][dim/4][16 tokens][4]       V [16 quads of tokens][dim][4]       k_scale f32[64]   v_scale f32[64]
//
// A row walks its pages in order and merges splits of 512 tokens in order, so its result does not depend on the rows
// beside it. Where a token is not visible its weight is exactly 0 and nothing else changes.

struct Page {
  const uint8_t *k, *v;
  const float *k_scale, *v_scale;
};

inline Page open_page(KV kind, const uint8_t* page, int dim) {
  const size_t half = static_cast<size_t>(kPage) * dim * (kind == KV::f32 ? 4 : kind == KV::bf16 ? 2 : 1);
  const float* scales = reinterpret_cast<const float*>(page + 2 * half);
  return {page, page + half, scales, scales + kPage};
}

// ---- writing and reading one token

inline float int8_scale(const float* x, int dim) {
  F most{};
  for (int i = 0; i < dim; i += 16) most = max(most, abs(load(x + i)));
  return largest(most) / 127.f;
}

void kv_write(KV kind, uint8_t* page, int slot, int dim, const float* k, const float* v) {
  const int block = slot / 16, lane = slot % 16;
  const Page at = open_page(kind, page, dim);
  switch (kind) {
    case KV::f32: {
      float* kp = reinterpret_cast<float*>(page) + static_cast<size_t>(block) * dim * 16 + lane;
      for (int i = 0; i < dim; i++) kp[i * 16] = k[i];
      std::memcpy(const_cast<uint8_t*>(at.v) + static_cast<size_t>(slot) * dim * 4, v, static_cast<size_t>(dim) * 4);
      return;
    }
    case KV::bf16: {
      bf16* kp = reinterpret_cast<bf16*>(page) + static_cast<size_t>(block) * dim * 16 + lane * 2;
      bf16* vp = reinterpret_cast<bf16*>(const_cast<uint8_t*>(at.v)) + static_cast<size_t>(slot / 2) * dim * 2 + slot % 2;
      for (int i = 0; i < dim; i++) kp[(i / 2) * 32 + i % 2] = to_bf16(k[i]);
      for (int i = 0; i < dim; i++) vp[i * 2] = to_bf16(v[i]);
      return;
    }
    case KV::int8: {
      const float ks = int8_scale(k, dim), vs = int8_scale(v, dim);
      const_cast<float*>(at.k_scale)[slot] = ks;
      const_cast<float*>(at.v_scale)[slot] = vs;
      const float ki = ks > 0 ? 1.f / ks : 0.f, vi = vs > 0 ? 1.f / vs : 0.f;
      uint8_t* kp = page + static_cast<size_t>(block) * dim * 16 + lane * 4;
      uint8_t* vp = const_cast<uint8_t*>(at.v) + static_cast<size_t>(slot / 4) * dim * 4 + slot % 4;
      for (int i = 0; i < dim; i += 16) {
        const I kq = round_to_int(load(k + i) * ki), vq = round_to_int(load(v + i) * vi);
        for (int j = 0; j < 16; j++) {
          kp[((i + j) / 4) * 64 + (i + j) % 4] = static_cast<uint8_t>(kq[j]);
          vp[(i + j) * 4] = static_cast<uint8_t>(vq[j]);
        }
      }
      return;
    }
  }
}

void kv_read(KV kind, const uint8_t* page, int slot, int dim, float* k, float* v) {
  const int block = slot / 16, lane = slot % 16;
  const Page at = open_page(kind, page, dim);
  for (int i = 0; i < dim; i++) {
    const size_t ki = static_cast<size_t>(block) * dim * 16;
    switch (kind) {
      case KV::f32:
        k[i] = reinterpret_cast<const float*>(at.k)[ki + i * 16 + lane];
        v[i] = reinterpret_cast<const float*>(at.v)[static_cast<size_t>(slot) * dim + i];
        break;
      case KV::bf16:
        k[i] = from_bf16(reinterpret_cast<const bf16*>(at.k)[ki + (i / 2) * 32 + lane * 2 + i % 2]);
        v[i] = from_bf16(reinterpret_cast<const bf16*>(at.v)[static_cast<size_t>(slot / 2) * dim * 2 + i * 2 + slot % 2]);
        break;
      case KV::int8:
        k[i] = at.k_scale[slot] * static_cast<float>(static_cast<int8_t>(at.k[ki + (i / 4) * 64 + lane * 4 + i % 4]));
        v[i] = at.v_scale[slot] *
               static_cast<float>(static_cast<int8_t>(at.v[static_cast<size_t>(slot / 4) * dim * 4 + i * 4 + slot % 4]));
        break;
    }
  }
}

// ---- one query row, in the form that the page's kind multiplies

struct Query {
  alignas(64) float f[kMaxDim];
  alignas(64) bf16 h[kMaxDim];
  alignas(64) int8_t q[kMaxDim];
  float scale;
  int32_t total;
};

inline void open_query(KV kind, const float* q, float scale, int dim, Query& out) {
  for (int i = 0; i < dim; i += 16) store(out.f + i, load(q + i) * scale);
  if (kind == KV::bf16)
    for (int i = 0; i < dim; i++) out.h[i] = to_bf16(out.f[i]);
  if (kind == KV::int8) {
    out.scale = int8_scale(out.f, dim);
    const float inverse = out.scale > 0 ? 1.f / out.scale : 0.f;
    I total{};
    for (int i = 0; i < dim; i += 16) {
      const I v = round_to_int(load(out.f + i) * inverse);
      for (int j = 0; j < 16; j++) out.q[i + j] = static_cast<int8_t>(v[j]);
      total += v;
    }
    out.total = sum(total);
  }
}

// ---- scores of R rows against the 64 tokens of a page: s (R, 64)

template <KV KIND, int R>
inline void scores(const Page& page, int dim, const Query* q, float* s) {
  for (int block = 0; block < 4; block++) {
    if constexpr (KIND == KV::int8) {
      const uint8_t* k = page.k + static_cast<size_t>(block) * dim * 16;
      I acc[R];
      for (int r = 0; r < R; r++) acc[r] = signed_start(q[r].total);
      for (int i = 0; i < dim; i += 4) {
        const B v = load_bytes(k + i * 16);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) acc[r] = dot4_signed(acc[r], v, quad(q[r].q + i));
      }
      const F ks = load(page.k_scale + block * 16);
      for (int r = 0; r < R; r++) store(s + r * kPage + block * 16, to_float(acc[r]) * (ks * q[r].scale));
    } else if constexpr (KIND == KV::bf16) {
      const uint8_t* k = page.k + static_cast<size_t>(block) * dim * 32;
      F even[R], odd[R];  // two chains per row, to hide the latency of the products
      for (int r = 0; r < R; r++) even[r] = odd[r] = F{};
      for (int i = 0; i < dim; i += 4) {
        const B v = load_bytes(k + i * 32), u = load_bytes(k + i * 32 + 64);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
          even[r] = dot2(even[r], v, pair(q[r].h + i));
          odd[r] = dot2(odd[r], u, pair(q[r].h + i + 2));
        }
      }
      for (int r = 0; r < R; r++) store(s + r * kPage + block * 16, even[r] + odd[r]);
    } else {
      const float* k = reinterpret_cast<const float*>(page.k) + static_cast<size_t>(block) * dim * 16;
      F acc[R];
      for (int r = 0; r < R; r++) acc[r] = F{};
      for (int i = 0; i < dim; i++) {
        const F v = load(k + i * 16);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) acc[r] = fma(v, splat(q[r].f[i]), acc[r]);
      }
      for (int r = 0; r < R; r++) store(s + r * kPage + block * 16, acc[r]);
    }
  }
}

// ---- softmax of one row over one page, continued: s becomes the weights; what came before shrinks

inline void soften(float* s, int lo, int hi, Partial& p, int dim) {
  I lane;
  for (int i = 0; i < 16; i++) lane[i] = i;
  const bool all = lo <= 0 && hi >= kPage;
  F most = splat(p.most);
  for (int b = 0; b < 4; b++) {
    F v = load(s + b * 16);
    if (!all) {
      v = (F)((lane + b * 16 >= lo && lane + b * 16 < hi) ? v : splat(-1e30f));
      store(s + b * 16, v);
    }
    most = max(most, v);
  }
  const float m = largest(most);
  F total{};
  for (int b = 0; b < 4; b++) {
    F e = exp(load(s + b * 16) - m);
    if (!all) e = (F)((lane + b * 16 >= lo && lane + b * 16 < hi) ? e : F{});
    store(s + b * 16, e);
    total += e;
  }
  const float shrink = exp(splat(p.most - m))[0];
  p.sum = p.sum * shrink + sum(total);
  p.most = m;
  if (shrink != 1.f)
    for (int i = 0; i < dim; i += 16) store(p.out + i, load(p.out + i) * shrink);
}

// ---- weighted values: p[r].out += weights (R, 64) times the page's values, N vectors of 16 dimensions from `first` on

template <KV KIND, int R, int N>
inline void add_values(const Page& page, int dim, int first, const float* w, const bf16* wh, const uint8_t* wq,
                       const float* ws, Partial* const* p) {
  F acc[R][N];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < N; c++) acc[r][c] = load(p[r]->out + first + c * 16);
  if constexpr (KIND == KV::f32) {
    for (int t = 0; t < kPage; t++) {
      const float* v = reinterpret_cast<const float*>(page.v) + static_cast<size_t>(t) * dim + first;
      F x[N];
      for (int c = 0; c < N; c++) x[c] = load(v + c * 16);
#pragma GCC unroll 6
      for (int r = 0; r < R; r++)
        for (int c = 0; c < N; c++) acc[r][c] = fma(x[c], splat(w[r * kPage + t]), acc[r][c]);
    }
  } else if constexpr (KIND == KV::bf16) {
    for (int t = 0; t < kPage; t += 2) {
      const uint8_t* v = page.v + (static_cast<size_t>(t) * dim + first * 2) * 2;
      B x[N];
      for (int c = 0; c < N; c++) x[c] = load_bytes(v + c * 64);
#pragma GCC unroll 6
      for (int r = 0; r < R; r++)
        for (int c = 0; c < N; c++) acc[r][c] = dot2(acc[r][c], x[c], pair(wh + r * kPage + t));
    }
  } else {
    I whole[R][N];
    for (int r = 0; r < R; r++)
      for (int c = 0; c < N; c++) whole[r][c] = I{};
    for (int t = 0; t < kPage; t += 4) {
      const uint8_t* v = page.v + static_cast<size_t>(t) * dim + first * 4;
      B x[N];
      for (int c = 0; c < N; c++) x[c] = load_bytes(v + c * 64);
#pragma GCC unroll 6
      for (int r = 0; r < R; r++) {
        uint32_t four;
        std::memcpy(&four, wq + r * kPage + t, 4);
        for (int c = 0; c < N; c++) whole[r][c] = dot4_unsigned(whole[r][c], four, x[c]);
      }
    }
    for (int r = 0; r < R; r++)
      for (int c = 0; c < N; c++) acc[r][c] = fma(to_float(whole[r][c]), splat(ws[r]), acc[r][c]);
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < N; c++) store(p[r]->out + first + c * 16, acc[r][c]);
}

template <KV KIND, int R>
inline void values(const Page& page, int dim, const float* w, Partial* const* p) {
  alignas(64) bf16 wh[R * kPage];
  alignas(64) uint8_t wq[R * kPage];
  float ws[R];
  if constexpr (KIND == KV::bf16)
    for (int i = 0; i < R * kPage; i++) wh[i] = to_bf16(w[i]);
  if constexpr (KIND == KV::int8)
    for (int r = 0; r < R; r++) {  // weights times value scales, in eight bits of the row's largest on this page
      F x[4], most{};
      for (int b = 0; b < 4; b++) {
        x[b] = load(w + r * kPage + b * 16) * load(page.v_scale + b * 16);
        most = max(most, x[b]);
      }
      const float top = largest(most), inverse = top > 0 ? 255.f / top : 0.f;
      for (int b = 0; b < 4; b++) {
        const I v = round_to_int(x[b] * inverse);
        for (int i = 0; i < 16; i++) wq[r * kPage + b * 16 + i] = static_cast<uint8_t>(v[i]);
      }
      ws[r] = top / 255.f;
    }
  int first = 0;
  for (; first + 64 <= dim; first += 64) add_values<KIND, R, 4>(page, dim, first, w, wh, wq, ws, p);
  switch ((dim - first) / 16) {
    case 3: add_values<KIND, R, 3>(page, dim, first, w, wh, wq, ws, p); break;
    case 2: add_values<KIND, R, 2>(page, dim, first, w, wh, wq, ws, p); break;
    case 1: add_values<KIND, R, 1>(page, dim, first, w, wh, wq, ws, p); break;
  }
}

// ---- a tile of rows over one split

template <KV KIND, int R>
inline void rows_on_page(const Page& page, int dim, const Query* q, const int* lo, const int* hi, Partial* const* p) {
  alignas(64) float s[R * kPage];
  scores<KIND, R>(page, dim, q, s);
  for (int r = 0; r < R; r++) soften(s + r * kPage, lo[r], hi[r], *p[r], dim);
  values<KIND, R>(page, dim, s, p);
}

template <KV KIND>
void walk(const Look& look, int g, int t0, int t1, int split, Partial* partials) {
  Query queries[kTile];
  int lo[kTile], hi[kTile];
  Partial* p[kTile];
  const int dim = look.dim, n = (t1 - t0) * look.group;
  int first = kSplit, last = 0;
  for (int i = 0; i < n; i++) {
    const int t = t0 + i / look.group, h = g * look.group + i % look.group;
    open_query(KIND, look.q + t * look.q_stride + h * dim, look.scale, dim, queries[i]);
    lo[i] = look.lo[t] - split * kSplit;
    hi[i] = look.hi[t] - split * kSplit;
    if (lo[i] < hi[i]) {
      first = lo[i] < first ? lo[i] : first;
      last = hi[i] > last ? hi[i] : last;
    }
    p[i] = partials + i;
    p[i]->most = -1e30f;
    p[i]->sum = 0;
    for (int d = 0; d < dim; d += 16) store(p[i]->out + d, F{});
  }
  if (first < 0) first = 0;
  if (last > kSplit) last = kSplit;
  for (int page = first / kPage; page * kPage < last; page++) {
    const size_t id = static_cast<size_t>(look.table[split * (kSplit / kPage) + page]);
    const Page at = open_page(KIND, look.pages + (id * look.kv_heads + g) * look.page_bytes, dim);
    int a[kTile], b[kTile];
    for (int i = 0; i < n; i++) {
      a[i] = lo[i] - page * kPage;
      b[i] = hi[i] - page * kPage;
    }
    int i = 0;
    for (; i + 6 <= n; i += 6) rows_on_page<KIND, 6>(at, dim, queries + i, a + i, b + i, p + i);
    switch (n - i) {
      case 5: rows_on_page<KIND, 5>(at, dim, queries + i, a + i, b + i, p + i); break;
      case 4: rows_on_page<KIND, 4>(at, dim, queries + i, a + i, b + i, p + i); break;
      case 3: rows_on_page<KIND, 3>(at, dim, queries + i, a + i, b + i, p + i); break;
      case 2: rows_on_page<KIND, 2>(at, dim, queries + i, a + i, b + i, p + i); break;
      case 1: rows_on_page<KIND, 1>(at, dim, queries + i, a + i, b + i, p + i); break;
    }
  }
}

void attend(const Look& look, int g, int t0, int t1, int split, Partial* partials) {
  switch (look.kind) {
    case KV::f32: return walk<KV::f32>(look, g, t0, t1, split, partials);
    case KV::bf16: return walk<KV::bf16>(look, g, t0, t1, split, partials);
    case KV::int8: return walk<KV::int8>(look, g, t0, t1, split, partials);
  }
}

void merge(Partial& whole, const Partial& part, int dim) {
  const float m = whole.most > part.most ? whole.most : part.most;
  const float a = exp(splat(whole.most - m))[0], b = exp(splat(part.most - m))[0];
  whole.sum = whole.sum * a + part.sum * b;
  whole.most = m;
  for (int i = 0; i < dim; i += 16) store(whole.out + i, fma(load(part.out + i), splat(b), load(whole.out + i) * a));
}
