// Keys of low rank. Included by isa.inl.

// Tokens of a chunk times N vectors of a basis' columns: w (8, rank), basis rows `stride` apart -> out (8, dim).
template <int N>
inline void columns(const float* w, int rank, const float* basis, ptrdiff_t stride, int dim, float* out) {
  Floats acc[8][N];
  for (auto& row : acc)
    for (auto& x : row) x = splat(0.f);
  for (int j = 0; j < rank; j++) {
    Floats b[N];
    for (int i = 0; i < N; i++) b[i] = load(basis + j * stride + 16 * i);
    for (int t = 0; t < 8; t++) {
      const Floats x = splat(w[t * rank + j]);
      for (int i = 0; i < N; i++) acc[t][i] = fma(x, b[i], acc[t][i]);
    }
  }
  for (int t = 0; t < 8; t++)
    for (int i = 0; i < N; i++) store(out + t * dim + 16 * i, acc[t][i]);
}

// Eight tokens' keys: a (8, rank) times a basis, each rotated by its own row of the table, as bf16 (8, dim).
void rebuild(const int16_t* a, int rank, const float* basis, ptrdiff_t stride, int dim, const float* table, int rotated, uint16_t* out) {
  alignas(64) float w[8 * kMaxRank], k[8 * kMaxDim];
  for (int i = 0; i < 8 * rank; i++) w[i] = static_cast<float>(a[i]);
  int c = 0;
  for (; c + 32 <= dim; c += 32) columns<2>(w, rank, basis + c, stride, dim, k + c);
  if (c < dim) columns<1>(w, rank, basis + c, stride, dim, k + c);
  for (int t = 0; t < 8; t++) {
    rope(k + t * dim, table + static_cast<ptrdiff_t>(t) * rotated, 1, dim, rotated);
    for (int d = 0; d < dim; d += 16) store_bf16(out + t * dim + d, load(k + t * dim + d));
  }
}

// The sum of e^(x - top) of x (n,), none of which is above top. What is -inf adds nothing.
float exp_sum(const float* x, int n, float top) {
  Floats total = splat(0.f);
  alignas(64) float rest[16];
  for (int i = 0; i < n; i += 16) {
    const float* from = x + i;
    if (i + 16 > n) {
      for (int j = 0; j < 16; j++) rest[j] = i + j < n ? x[i + j] : kUnseen;
      from = rest;
    }
    total = total + exp(load(from) - top);
  }
  return sum(total);
}
