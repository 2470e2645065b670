// Row-wise operators. Included by isa.inl.

void rmsnorm(const float* x, const float* weight, float eps, float* out, int k) {
  F squares{};
  int i = 0;
  for (; i + 16 <= k; i += 16) {
    const F v = load(x + i);
    squares = fma(v, v, squares);
  }
  float total = sum(squares);
  for (; i < k; i++) total += x[i] * x[i];
  const float inverse = 1.f / __builtin_sqrtf(total / static_cast<float>(k) + eps);
  for (i = 0; i + 16 <= k; i += 16) store(out + i, load(x + i) * inverse * load(weight + i));
  for (; i < k; i++) out[i] = x[i] * inverse * weight[i];
}

// Half-split rotation of every head's first `rotated` dimensions; table: cosines, then sines, of one position.
void rope(float* x, const float* table, int heads, int dim, int rotated) {
  const int n = rotated / 2;
  for (int h = 0; h < heads; h++, x += dim) {
    int i = 0;
    for (; i + 16 <= n; i += 16) {
      const F a = load(x + i), b = load(x + n + i), c = load(table + i), s = load(table + n + i);
      store(x + i, a * c - b * s);
      store(x + n + i, b * c + a * s);
    }
    for (; i < n; i++) {
      const float a = x[i], b = x[n + i];
      x[i] = a * table[i] - b * table[n + i];
      x[n + i] = b * table[i] + a * table[n + i];
    }
  }
}

inline F sigmoid(F x) {  // by e^-|x|, which cannot overflow
  const F e = exp(-abs(x)), one = splat(1.f);
  const F y = one / (one + e);
  return (F)((x < 0.f) ? e * y : y);
}
// 0.5 x (1 + tanh u) = x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3)
inline F gelu(F x) { return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x)); }

void gated(const float* gate, const float* up, bool is_gelu, float* out, int n) {
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const F g = load(gate + i);
    store(out + i, (is_gelu ? gelu(g) : g * sigmoid(g)) * load(up + i));
  }
  if (i < n) {
    float g[16] = {}, u[16] = {}, o[16];
    std::memcpy(g, gate + i, sizeof(float) * (n - i));
    std::memcpy(u, up + i, sizeof(float) * (n - i));
    const F v = load(g);
    store(o, (is_gelu ? gelu(v) : v * sigmoid(v)) * load(u));
    std::memcpy(out + i, o, sizeof(float) * (n - i));
  }
}
