// Row-wise operators. Included by isa.inl.

void rmsnorm(const float* x, const float* weight, float eps, float* out, int k) {
  Floats squares = splat(0.f);
  int i = 0;
  for (; i + 16 <= k; i += 16) {
    const Floats v = load(x + i);
    squares = fma(v, v, squares);
  }
  float total = sum(squares);
  for (; i < k; i++) total += x[i] * x[i];
  const float inverse = 1.f / __builtin_sqrtf(total / static_cast<float>(k) + eps);
  for (i = 0; i + 16 <= k; i += 16) store(out + i, load(x + i) * inverse * load(weight + i));
  for (; i < k; i++) out[i] = x[i] * inverse * weight[i];
}

void rope(float* x, const float* table, int heads, int dim, int rotated) {
  const int n = rotated / 2;
  for (int h = 0; h < heads; h++, x += dim) {
    int i = 0;
    for (; i + 16 <= n; i += 16) {
      const Floats a = load(x + i), b = load(x + n + i), c = load(table + i), s = load(table + n + i);
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

inline Floats sigmoid(Floats x) {  // by e^-|x|, which cannot overflow
  const Floats zero = splat(0.f), one = splat(1.f), e = exp(from_bits(bits(x) | static_cast<int32_t>(0x80000000u)));
  const Floats y = one / (one + e);
  return select(less(x, zero), e * y, y);
}
// 0.5 x (1 + tanh u) = x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3)
inline Floats gelu(Floats x) { return x * sigmoid((x + x * x * x * 0.044715f) * 1.5957691216f); }

inline Floats gate_times_up(Floats gate, Floats up, bool is_gelu) {
  return (is_gelu ? gelu(gate) : gate * sigmoid(gate)) * up;
}

void gated(const float* gate, const float* up, bool is_gelu, float* out, int n) {
  int i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, gate_times_up(load(gate + i), load(up + i), is_gelu));
  if (i < n) {
    float g[16] = {}, u[16] = {}, o[16];
    const size_t rest = sizeof(float) * static_cast<size_t>(n - i);
    std::memcpy(g, gate + i, rest);
    std::memcpy(u, up + i, rest);
    store(o, gate_times_up(load(g), load(u), is_gelu));
    std::memcpy(out + i, o, rest);
  }
}

// Of n pixels, `step` apart, each channel's sum and sum of squares is added to those of `sum` and `square` (c,); before that
// `add` (c,), or nothing, to each pixel. In double precision: their difference is taken.
void moments(const float* x, ptrdiff_t step, int n, const float* add, double* sum, double* square, int c) {
  for (int p = 0; p < n; p++, x += step)
    for (int i = 0; i < c; i++) {
      const double v = static_cast<double>(x[i]) + static_cast<double>(add[i]);
      sum[i] += v;
      square[i] += v * v;
    }
}

// y = x scale + shift by channel, then y sigmoid(y) if `silu`.
void rescale(const float* x, ptrdiff_t step, int n, const float* scale, const float* shift, bool silu, float* out, ptrdiff_t out_step, int c) {
  const auto at = [&](const float* from, int i) {
    const Floats y = fma(load(from), load(scale + i), load(shift + i));
    return silu ? y * sigmoid(y) : y;
  };
  const int whole = c / 16 * 16;
  const size_t rest = sizeof(float) * static_cast<size_t>(c - whole);
  for (int p = 0; p < n; p++, x += step, out += out_step) {
    for (int i = 0; i < whole; i += 16) store(out + i, at(x + i, i));
    if (rest == 0) continue;
    float from[16] = {}, to[16];
    std::memcpy(from, x + whole, rest);
    store(to, at(from, whole));
    std::memcpy(out + whole, to, rest);
  }
}
