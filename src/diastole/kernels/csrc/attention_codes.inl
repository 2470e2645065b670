// Attention over pages of codes, which rows see as a whole. Included by attention.inl.
//
// The steps of keys go into the query and those of values into the weights, so that what is multiplied are the codes
// themselves, exact in bf16.

inline void fetch_page(const uint8_t* page, size_t bytes) {
  for (size_t i = 0; page != nullptr && i < bytes; i += 64) prefetch(page + i);
}

// A query with the steps of keys in it, and what their centers add to its scores.
inline float fold_query(const float* q, float scale, const Measures& m, int dim, bf16* out) {
  Floats offset = splat(0.f);
  for (int i = 0; i < dim; i += 16) {
    const Floats x = load(q + i) * scale;
    store_bf16(out + i, x * load(m.k_step + i));
    offset = fma(x, load(m.k_center + i), offset);
  }
  return sum(offset);
}

template <int R>
inline void visit_codes(const Halves<const uint8_t>& codes, const Measures& m, int dim, const Seat* seats) {
  alignas(64) float s[R * kPage];
  Query query[R];
  Partial part[R];
  Seat own[R];
  float offset[R];
  for (int r = 0; r < R; r++) {
    offset[r] = fold_query(seats[r].query->f, 1.f, m, dim, query[r].h);
    own[r] = {query + r, part + r, nullptr, 0, kPage};
  }
  scores<KV::bf16, R>(codes, dim, 0, kPage / 16, Ahead{0, 0}, own, s);
  for (int r = 0; r < R; r++) {
    float* row = s + r * kPage;
    for (int b = 0; b < kPage; b += 16) store(row + b, load(row + b) + offset[r]);
    soften<KV::bf16>(row, seats[r], dim);
    Floats center = splat(0.f);
    for (int b = 0; b < kPage; b += 16) {
      const Floats w = load(row + b);
      center = fma(w, load(m.v_center + b), center);
      store(row + b, w * load(m.v_step + b));
    }
    const Floats start = splat(sum(center));
    for (int i = 0; i < dim; i += 16) store(part[r].out + i, start);
  }
  Weights<KV::bf16, R> w;
  open_weights<KV::bf16, R>(codes, s, w);
  add_columns<KV::bf16, R, kColumns>(codes, dim, 0, 0, kPage, Ahead{0, 0}, w, own);
  for (int r = 0; r < R; r++)
    for (int i = 0; i < dim; i += 16) {
      float* out = seats[r].partial->out + i;
      store(out, fma(load(part[r].out + i), load(m.v_scale + i), load(out)));
    }
}

template <int R>
void visit_all_codes(const Halves<const uint8_t>& codes, const Measures& m, int dim, const Seat* seats, int n) {
  for (; n >= R; n -= R, seats += R) visit_codes<R>(codes, m, dim, seats);
  if constexpr (R > 1)
    if (n > 0) visit_all_codes<R - 1>(codes, m, dim, seats, n);
}

