// Paged keys and values: writing and reading single tokens. Included by isa.inl.
//
// One page of one head holds 64 tokens, keys with tokens in the lanes and values with dimensions in the lanes:
//
//   f32    K [4][dim][16 tokens]            V [64 tokens][dim]
//   bf16   K [4][dim/2][16 tokens][2]       V [32 pairs of tokens][dim][2]
//   int8   K [4][dim/4][16 tokens][4]       V [16 quads of tokens][dim][4]       k_scale f32[64]   v_scale f32[64]
//   rows   K [64 tokens][dim]               V [64 tokens][dim]                   in bf16
//
// rows is what single tokens are picked from: a token is one run of bytes. A page of it that is looked at as a whole is
// brought into the form of bf16 before.

template <class Byte>
struct Halves {
  Byte *k, *v, *scales;
};

template <class Byte>
inline Halves<Byte> open_page(KV kind, Byte* page, int dim) {
  const size_t half = static_cast<size_t>(kPage) * dim * (kind == KV::f32 ? 4 : kind == KV::int8 ? 1 : 2);
  return {page, page + half, page + 2 * half};
}

// The keys of a page alone, of which there may be no more.
void key_write(uint8_t* page, int slot, int dim, const float* k) {
  alignas(64) bf16 row[kMaxDim];
  for (int i = 0; i < dim; i += 16) store_bf16(row + i, load(k + i));
  uint8_t* keys = page + static_cast<size_t>(slot / 16) * dim * 32 + (slot % 16) * 4;
  for (int i = 0; i < dim; i += 2) std::memcpy(keys + i * 32, row + i, 4);
}

// What a row in int8 is multiplied with: its largest magnitude over 127. NaN if the row holds one.
inline float int8_scale(const float* x, int dim) {
  Ints most = splat(0);
  for (int i = 0; i < dim; i += 16) most = max(most, magnitude(load(x + i)));
  return as_float(largest(most)) / 127.f;
}
inline void to_int8(const float* x, int dim, float scale, int8_t* out) {
  const float inverse = scale > 0 ? 1.f / scale : 0.f;
  for (int i = 0; i < dim; i += 16) narrow8(round_to_int(load(x + i) * inverse), out + i);
}

void kv_write(KV kind, uint8_t* page, int slot, int dim, const float* k, const float* v) {
  const int block = slot / 16, lane = slot % 16;
  const Halves<uint8_t> at = open_page(kind, page, dim);
  if (kind == KV::f32) {
    float* keys = reinterpret_cast<float*>(at.k) + static_cast<size_t>(block) * dim * 16 + lane;
    for (int i = 0; i < dim; i++) keys[i * 16] = k[i];
    std::memcpy(at.v + static_cast<size_t>(slot) * dim * 4, v, static_cast<size_t>(dim) * 4);
    return;
  }
  if (kind == KV::rows) {
    bf16 *keys = reinterpret_cast<bf16*>(at.k) + static_cast<size_t>(slot) * dim, *values = reinterpret_cast<bf16*>(at.v) + static_cast<size_t>(slot) * dim;
    for (int i = 0; i < dim; i += 16) store_bf16(keys + i, load(k + i));
    for (int i = 0; i < dim; i += 16) store_bf16(values + i, load(v + i));
    return;
  }
  if (kind == KV::bf16) {
    key_write(at.k, slot, dim, k);
    alignas(64) bf16 row[kMaxDim];
    for (int i = 0; i < dim; i += 16) store_bf16(row + i, load(v + i));
    bf16* values = reinterpret_cast<bf16*>(at.v) + static_cast<size_t>(slot / 2) * dim * 2 + slot % 2;
    for (int i = 0; i < dim; i++) values[i * 2] = row[i];
    return;
  }
  alignas(64) int8_t row[kMaxDim];
  const float k_scale = int8_scale(k, dim), v_scale = int8_scale(v, dim);
  std::memcpy(at.scales + slot * 4, &k_scale, 4);
  std::memcpy(at.scales + (kPage + slot) * 4, &v_scale, 4);
  to_int8(k, dim, k_scale, row);
  uint8_t* keys = at.k + static_cast<size_t>(block) * dim * 16 + lane * 4;
  for (int i = 0; i < dim; i += 4) std::memcpy(keys + i * 16, row + i, 4);
  to_int8(v, dim, v_scale, row);
  uint8_t* values = at.v + static_cast<size_t>(slot / 4) * dim * 4 + slot % 4;
  for (int i = 0; i < dim; i++) values[i * 4] = static_cast<uint8_t>(row[i]);
}

void kv_read(KV kind, const uint8_t* page, int slot, int dim, float* k, float* v) {
  const int block = slot / 16, lane = slot % 16;
  const Halves<const uint8_t> at = open_page(kind, page, dim);
  if (kind == KV::f32) {
    const float* keys = reinterpret_cast<const float*>(at.k) + static_cast<size_t>(block) * dim * 16 + lane;
    for (int i = 0; i < dim; i++) k[i] = keys[i * 16];
    std::memcpy(v, at.v + static_cast<size_t>(slot) * dim * 4, static_cast<size_t>(dim) * 4);
    return;
  }
  if (kind == KV::rows) {
    const bf16 *keys = reinterpret_cast<const bf16*>(at.k) + static_cast<size_t>(slot) * dim, *values = reinterpret_cast<const bf16*>(at.v) + static_cast<size_t>(slot) * dim;
    for (int i = 0; i < dim; i++) k[i] = from_bf16(keys[i]);
    for (int i = 0; i < dim; i++) v[i] = from_bf16(values[i]);
    return;
  }
  if (kind == KV::bf16) {
    const bf16* keys = reinterpret_cast<const bf16*>(at.k) + static_cast<size_t>(block) * dim * 16 + lane * 2;
    const bf16* values = reinterpret_cast<const bf16*>(at.v) + static_cast<size_t>(slot / 2) * dim * 2 + slot % 2;
    for (int i = 0; i < dim; i++) k[i] = from_bf16(keys[(i / 2) * 32 + i % 2]);
    for (int i = 0; i < dim; i++) v[i] = from_bf16(values[i * 2]);
    return;
  }
  float k_scale, v_scale;
  std::memcpy(&k_scale, at.scales + slot * 4, 4);
  std::memcpy(&v_scale, at.scales + (kPage + slot) * 4, 4);
  const int8_t* keys = reinterpret_cast<const int8_t*>(at.k) + static_cast<size_t>(block) * dim * 16 + lane * 4;
  const int8_t* values = reinterpret_cast<const int8_t*>(at.v) + static_cast<size_t>(slot / 4) * dim * 4 + slot % 4;
  for (int i = 0; i < dim; i++) k[i] = k_scale * static_cast<float>(keys[(i / 4) * 64 + i % 4]);
  for (int i = 0; i < dim; i++) v[i] = v_scale * static_cast<float>(values[i * 4]);
}

// ---- tokens by themselves

// Sixteen tokens of KV::rows, their keys as a block of KV::bf16.
inline void block_keys(const bf16* const* rows, int dim, uint8_t* out) {
  int i = 0;
  for (; i + 32 <= dim; i += 32) {
    const uint8_t* from[16];
    for (int t = 0; t < 16; t++) from[t] = reinterpret_cast<const uint8_t*>(rows[t] + i);
    transpose16(from, out + i * 32);
  }
  for (; i < dim; i += 2)
    for (int t = 0; t < 16; t++) std::memcpy(out + i * 32 + t * 4, rows[t] + i, 4);
}

inline void pair_values(const bf16* a, const bf16* b, int dim, uint8_t* out) {
  uint32_t* to = reinterpret_cast<uint32_t*>(out);
  for (int i = 0; i < dim; i++) to[i] = static_cast<uint32_t>(a[i]) | static_cast<uint32_t>(b[i]) << 16;
}

// Up to 64 tokens of KV::rows as a page of KV::bf16, key and value rows given one by one; the last one stands for those
// that are missing.
__attribute__((noinline)) void form_keys(const bf16* const* keys, int n, int dim, uint8_t* room) {
  const bf16* row[kPage];
  const int whole = (n + 15) / 16 * 16;
  for (int t = 0; t < whole; t++) row[t] = keys[t < n ? t : n - 1];
  for (int t = 0; t < whole; t += 16) block_keys(row + t, dim, room + static_cast<size_t>(t) * dim * 2);
}

__attribute__((noinline)) void form_page(const bf16* const* keys, const bf16* const* values, int n, int dim, uint8_t* room) {
  const Halves<uint8_t> to = open_page(KV::bf16, room, dim);
  form_keys(keys, n, dim, to.k);
  const bf16* row[kPage];
  const int whole = (n + 15) / 16 * 16;
  for (int t = 0; t < whole; t++) row[t] = values[t < n ? t : n - 1];
  for (int t = 0; t < whole; t += 2) pair_values(row[t], row[t + 1], dim, to.v + static_cast<size_t>(t) * dim * 2);
}

// Tokens 0 <= t < n of a page of KV::rows.
inline const uint8_t* form_page(const uint8_t* page, int n, int dim, uint8_t* room) {
  const Halves<const uint8_t> from = open_page(KV::rows, page, dim);
  const bf16 *keys[kPage], *values[kPage];
  for (int t = 0; t < n; t++) {
    keys[t] = reinterpret_cast<const bf16*>(from.k) + static_cast<size_t>(t) * dim;
    values[t] = reinterpret_cast<const bf16*>(from.v) + static_cast<size_t>(t) * dim;
  }
  form_page(keys, values, n, dim, room);
  return room;
}

// The same without values.
inline const uint8_t* form_keys(const uint8_t* page, int n, int dim, uint8_t* room) {
  const bf16* keys[kPage];
  for (int t = 0; t < n; t++) keys[t] = reinterpret_cast<const bf16*>(page) + static_cast<size_t>(t) * dim;
  form_keys(keys, n, dim, room);
  return room;
}

// A page in the form that is multiplied, of which tokens below `last` are seen.
inline const uint8_t* formed(KV kind, const uint8_t* page, int last, int dim, uint8_t* room) {
  return kind == KV::rows ? form_page(page, last < kPage ? last : kPage, dim, room) : page;
}

// One token from one page to another of the same kind, where dimensions or tokens lie side by side in `wide` bytes.
inline void copy_token(KV kind, const uint8_t* page, int slot, uint8_t* to, int at, int dim) {
  const Halves<const uint8_t> a = open_page(kind, page, dim);
  const Halves<uint8_t> b = open_page(kind, to, dim);
  const int size = kind == KV::f32 ? 4 : kind == KV::bf16 ? 2 : 1, per = 4 / size;  // numbers in a word
  const size_t block = static_cast<size_t>(dim) * 16 * size, line = static_cast<size_t>(dim) * 4;
  const uint8_t* k = a.k + slot / 16 * block + slot % 16 * 4;
  uint8_t* k_to = b.k + at / 16 * block + at % 16 * 4;
  for (int i = 0; i < dim; i += per) std::memcpy(k_to + i / per * 64, k + i / per * 64, 4);
  const uint8_t* v = a.v + slot / per * line + slot % per * size;
  uint8_t* v_to = b.v + at / per * line + at % per * size;
  for (int i = 0; i < dim; i++) std::memcpy(v_to + i * 4, v + i * 4, size);
  if (kind != KV::int8) return;
  std::memcpy(b.scales + at * 4, a.scales + slot * 4, 4);
  std::memcpy(b.scales + (kPage + at) * 4, a.scales + (kPage + slot) * 4, 4);
}

// Where a token's key and value of KV::rows lie.
struct Row {
  const bf16 *key, *value;
  Row(const Look& look, int g, int64_t at) {
    const Halves<const uint8_t> page =
        open_page(KV::rows, static_cast<const uint8_t*>(look.pages) + (static_cast<size_t>(at / kPage) * look.kv_heads + static_cast<size_t>(g)) * look.page_bytes, look.dim);
    key = reinterpret_cast<const bf16*>(page.k) + at % kPage * look.dim;
    value = reinterpret_cast<const bf16*>(page.v) + at % kPage * look.dim;
  }
};

void fetch(const Look& look, int g, const int64_t* at, int n) {
  for (int i = 0; look.kind == KV::rows && i < n; i++) {
    const Row row(look, g, at[i]);
    for (int d = 0; d < look.dim; d += 32) {
      prefetch(row.key + d);
      prefetch(row.value + d);
    }
  }
}

void gather(const Look& look, int g, const int64_t* at, int n, uint8_t* room) {
  const auto page = [&](int i) {
    return look.pages + (static_cast<size_t>(at[i] / kPage) * look.kv_heads + static_cast<size_t>(g)) * look.page_bytes;
  };
  if (look.kind != KV::rows) {
    for (int i = 0; i < n; i++)
      copy_token(look.kind, page(i), static_cast<int>(at[i] % kPage), room + i / kPage * look.page_bytes, i % kPage, look.dim);
    return;
  }
  for (int i = 0; i < n; i += kPage, room += look.page_bytes) {
    const bf16 *keys[kPage], *values[kPage];
    const int here = n - i < kPage ? n - i : kPage;
    for (int t = 0; t < here; t++) {
      const Row row(look, g, at[i + t]);
      keys[t] = row.key, values[t] = row.value;
    }
    form_page(keys, values, here, look.dim, room);
  }
}

void dots(const float* q, int r, int n, const uint16_t* rows, int m, float* out) {
  const int half = n / 2;
  for (int j = 0; j < m; j++) {
    const uint16_t* row = rows + static_cast<size_t>(j) * n;
    for (int i = 0; i < r; i++) {
      const float *even = q + static_cast<size_t>(i) * n, *odd = even + half;
      Floats a = splat(0.f), b = splat(0.f);
      for (int c = 0; c < half; c += 16) {
        const Ints pair = load_words(row + 2 * c);
        a = fma(from_bits(pair << 16), load(even + c), a);
        b = fma(from_bits(pair & static_cast<int32_t>(0xffff0000u)), load(odd + c), b);
      }
      out[static_cast<size_t>(i) * m + j] = sum(a + b);
    }
  }
}
