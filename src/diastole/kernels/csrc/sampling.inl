// Passes over a row of scores. Included by isa.inl.

// The largest, NaN if one is.
float most(const float* x, int n) {
  Floats top = splat(-__builtin_inff());
  Ints strange = splat(0);  // lanes that have seen NaN
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const Floats v = load(x + i);
    top = max(v, top);
    strange = strange | less(splat(0x7f800000), magnitude(v));
  }
  float result = largest(top);
  for (; i < n; i++) {
    if (x[i] != x[i]) return x[i];
    result = x[i] > result ? x[i] : result;
  }
  return sum(strange) != 0 ? __builtin_nanf("") : result;
}

// w = e^(x / t - top / t), and their sum. x / t is rounded first, as a division of the whole row would.
double weigh(const float* x, int n, float t, float top, float* w) {
  double total = 0;
  int i = 0;
  for (; i + 16 <= n;) {
    Floats part = splat(0.f);  // few enough for a float to add up
    for (int stop = i + 512; i + 16 <= n && i < stop; i += 16) {
      const Floats e = exp(load(x + i) / splat(t) - splat(top / t));
      store(w + i, e);
      part = part + e;
    }
    total += static_cast<double>(sum(part));
  }
  if (i < n) {
    float rest[16];
    for (int j = 0; j < 16; j++) rest[j] = i + j < n ? x[i + j] : -__builtin_inff();
    store(rest, exp(load(rest) / splat(t) - splat(top / t)));
    for (int j = 0; i + j < n; j++) total += static_cast<double>(w[i + j] = rest[j]);
  }
  return total;
}

// x = e^(x - the largest), and their sum; 0 where nothing is seen. n: whole pages.
double soften_row(float* x, int n) {
  Floats top = splat(kUnseen);
  for (int i = 0; i < n; i += 16) top = max(load(x + i), top);
  const float most = largest(top);
  double total = 0;
  for (int i = 0; i < n; i += kPage) {
    Floats part[4];
    for (int j = 0; j < 4; j++) {
      const Floats v = load(x + i + j * 16);
      part[j] = select(less(v, splat(0.5f * kUnseen)), splat(0.f), exp(v - most));
      store(x + i + j * 16, part[j]);
    }
    total += static_cast<double>(sum((part[0] + part[1]) + (part[2] + part[3])));
  }
  return total;
}

// w *= by, added to columns (n,); pages (n / 64,): the sums of its pages. n: whole pages.
void tally(float* w, int n, float by, float* columns, float* pages) {
  for (int i = 0; i < n; i += kPage) {
    Floats part = splat(0.f);
    for (int j = i; j < i + kPage; j += 16) {
      const Floats v = load(w + j) * by;
      store(w + j, v);
      store(columns + j, load(columns + j) + v);
      part = part + v;
    }
    pages[i / kPage] = sum(part);
  }
}

// Places of what is at least `least`, in order; returns how many. There must be room for n.
int at_least(const float* x, int n, float least, int32_t* places) {
  int count = 0, i = 0;
  for (; i + 64 <= n; i += 64) {
    Ints under = splat(0);
    for (int j = i; j < i + 64; j += 16) under = under + less(load(x + j), splat(least));
    if (sum(under) == -64) continue;  // the usual case: none
    for (int j = i; j < i + 64; j++) {  // without a branch, which nobody could foretell
      places[count] = j;
      count += x[j] >= least;
    }
  }
  for (; i < n; i++)
    if (x[i] >= least) places[count++] = i;
  return count;
}

// The largest of each sixteen, n / 16 of them.
void tops(const float* x, int n, float* out) {
  for (int i = 0; i + 16 <= n; i += 16) *out++ = largest(load(x + i));
}

// What is larger in x - off takes the place of what is in `to`.
void raise(const float* x, int n, float off, float* to) {
  int i = 0;
  for (; i + 16 <= n; i += 16) store(to + i, max(load(x + i) - off, load(to + i)));
  for (; i < n; i++) to[i] = x[i] - off > to[i] ? x[i] - off : to[i];
}

// Places whose score plus noise may be the largest, in order. w: weights as above; reach: e^(top - mark), where mark is a
// sum of score and noise that exists. Noise -log(-log u) is at most -log(1 - u), so whoever has 1 - u > w reach is out,
// which needs no logarithm.
int contenders(const float* w, int n, uint64_t key, float reach, int32_t* places) {
  int count = 0;
  for (int i = 0; i < n; i += 16) {
    alignas(64) float rest[16];  // 1 - u
    for (int j = 0; j < 16; j++)
      rest[j] = static_cast<float>(static_cast<int64_t>((uint64_t{1} << 53) - noise_bits(key, i + j))) * 0x1p-53f;
    if (i + 16 <= n && sum(less(load(w + i) * reach, load(rest))) == -16) continue;
    for (int j = 0; j < 16 && i + j < n; j++)
      if (!(rest[j] > w[i + j] * reach)) places[count++] = i + j;
  }
  return count;
}
