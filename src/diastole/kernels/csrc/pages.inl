// Paged keys and values: writing and reading single tokens. Included by isa.inl.
//
// One page of one head holds 64 tokens, keys with tokens in the lanes and values with dimensions in the lanes:
//
//   f32    K [4][dim][16 tokens]            V [64 tokens][dim]
//   bf16   K [4][dim/2][16 tokens][2]       V [32 pairs of tokens][dim][2]
//   int8   K [4][dim/4][16 tokens][4]       V [16 quads of tokens][dim][4]       k_scale f32[64]   v_scale f32[64]
//
// rows and rows8, which single tokens are picked from: see rows.inl.

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

#include "rows.inl"

void kv_write(KV kind, uint8_t* page, int slot, int dim, const float* k, const float* v) {
  const int block = slot / 16, lane = slot % 16;
  const Halves<uint8_t> at = open_page(kind, page, dim);
  if (kind == KV::f32) {
    float* keys = reinterpret_cast<float*>(at.k) + static_cast<size_t>(block) * dim * 16 + lane;
    for (int i = 0; i < dim; i++) keys[i * 16] = k[i];
    std::memcpy(at.v + static_cast<size_t>(slot) * dim * 4, v, static_cast<size_t>(dim) * 4);
    return;
  }
  if (in_rows(kind)) {
    uint8_t* row = page + static_cast<ptrdiff_t>(slot) * 2 * row_bytes(kind, dim);
    row_write(kind, row, dim, k);
    row_write(kind, row + row_bytes(kind, dim), dim, v);
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
  if (in_rows(kind)) {
    const Row row(kind, page, slot, dim);
    row_read(kind, row.key, dim, k);
    row_read(kind, row.value, dim, v);
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

void gather(const Look& look, int g, const int64_t* at, int n, uint8_t* room) {
  const size_t size = kv_page_bytes(multiplied(look.kind), look.dim);
  const auto page = [&](int i) {
    return look.pages + (static_cast<size_t>(at[i] / kPage) * look.kv_heads + static_cast<size_t>(g)) * look.page_bytes;
  };
  if (!in_rows(look.kind)) {
    for (int i = 0; i < n; i++) copy_token(look.kind, page(i), static_cast<int>(at[i] % kPage), room + i / kPage * size, i % kPage, look.dim);
    return;
  }
  for (int i = 0; i < n; i += kPage, room += size)
    form(look.kind, n - i < kPage ? n - i : kPage, look.dim, true, room,
         [&](int t) { return Row(look.kind, page(i + t), static_cast<int>(at[i + t] % kPage), look.dim); });
}

void fetch(const Look& look, int g, const int64_t* at, int n) {
  if (!in_rows(look.kind)) return;
  for (int i = 0; i < n; i++)
    fetch_row(look.kind, look.pages + (static_cast<size_t>(at[i] / kPage) * look.kv_heads + static_cast<size_t>(g)) * look.page_bytes,
              static_cast<int>(at[i] % kPage), look.dim);
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
