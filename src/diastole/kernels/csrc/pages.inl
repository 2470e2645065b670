// Paged keys and values: writing and reading single tokens. Included by isa.inl.
//
// One page of one head holds 64 tokens, keys with tokens in the lanes and values with dimensions in the lanes:
//
//   f32    K [4][dim][16 tokens]            V [64 tokens][dim]
//   bf16   K [4][dim/2][16 tokens][2]       V [32 pairs of tokens][dim][2]
//   int8   K [4][dim/4][16 tokens][4]       V [16 quads of tokens][dim][4]       k_scale f32[64]   v_scale f32[64]

template <class Byte>
struct Halves {
  Byte *k, *v, *scales;
};

template <class Byte>
inline Halves<Byte> open_page(KV kind, Byte* page, int dim) {
  const size_t half = static_cast<size_t>(kPage) * dim * (kind == KV::f32 ? 4 : kind == KV::bf16 ? 2 : 1);
  return {page, page + half, page + 2 * half};
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
  if (kind == KV::bf16) {
    alignas(64) bf16 row[kMaxDim];
    for (int i = 0; i < dim; i += 16) store_bf16(row + i, load(k + i));
    uint8_t* keys = at.k + static_cast<size_t>(block) * dim * 32 + lane * 4;
    for (int i = 0; i < dim; i += 2) std::memcpy(keys + i * 32, row + i, 4);
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
