// Pages of codes of four and of two bits. Included by isa.inl after pages.inl; the reader's twin is kernels/codes.py.
//
// A page of one head holds its 64 tokens in another order: first those that keep four bits, `fine` of them, a multiple
// of four, then the rest; both in order of position. A code is 4 high + low; the rest keep `high` alone, and their `low`
// follows from it. With w = dim/16, words of four bytes:
//
//   keys, high     [4 blocks of tokens][w][16 tokens]
//   keys, low      the same for fine tokens: whole blocks, then [w][those that are left]
//   values, high   [4 blocks of tokens][w][16 dims]
//   values, low    whole blocks of fine tokens, then for every four that are left [ceil(w/4)][16 dims][4]: a byte each
//   fine           u64: a bit for each position
//   base           f32: what steps of values are multiples of
//   of channels    center of keys int8 [ceil(w/4)][16][4] | step of keys, the same | scale of values, 4 bits [dim]
//   of tokens      [16 tokens][4 blocks]: step of values | center << 4
//
// A word of keys holds sixteen channels of a token, pair i of them in bits 2i of its low half and of its high half; a
// word of values sixteen tokens of a dimension likewise.
//
//   key   = step_c (code - 7.5 + center_c / 2)
//   value = scale_d step_t (code - 7.5 + center_t / 2)

constexpr float kMiddle = 7.5f;

// Where the parts of a page lie.
struct Parts {
  size_t k_low, v_high, v_low, fine, base, center, step, scale, tokens, size;
  Parts(int dim, int fine_tokens) {
    const size_t w = static_cast<size_t>(dim / 16), low = 4 * w * static_cast<size_t>(fine_tokens), wide = (w + 3) / 4 * 64;
    k_low = 256 * w, v_high = k_low + low, v_low = v_high + 256 * w;
    fine = v_low + static_cast<size_t>(fine_tokens / 16) * 64 * w + static_cast<size_t>(fine_tokens % 16 / 4) * wide, base = fine + 8;
    center = base + 4, step = center + wide, scale = step + wide, tokens = scale + 8 * w, size = tokens + 64;
  }
};

// A number by eight bits, five of exponent from 2^-20 on and three of mantissa; one from 1 to 14 by four, two of each.
constexpr int32_t kOne = 0x3f800000, kLeast = (127 - 20) << 23;
inline Ints clamp(Ints x, int lo, int hi) { return max(select(less(x, splat(hi)), x, splat(hi)), splat(lo)); }
inline Floats number8(Ints code) { return from_bits((code << 20) + kLeast); }
inline Ints nearest8(Floats x) { return clamp((bits(x) - (kLeast - (1 << 19))) >> 20, 0, 255); }  // of x >= 0
inline Floats number4(Ints code) { return from_bits((code << 21) + kOne); }
inline Ints nearest4(Floats x) { return clamp((bits(x) - (kOne - (1 << 20))) >> 21, 0, 15); }

// The low bits that stand for those a token has not: codes 2, 6, 9 and 13.
inline Ints guess(Ints high) { return ((high >> 1) & 0x55555555) | ((high ^ -1) & static_cast<int32_t>(0xaaaaaaaau)); }

// Eight vectors of pairs of bf16, the codes of sixteen words less 7.5, `apart` bytes from each other.
inline void open_words(Ints high, Ints low, uint8_t* out, size_t apart) {
  const Ints even = ((high & 0x33333333) << 2) | (low & 0x33333333);
  const Ints odd = (high & static_cast<int32_t>(0xccccccccu)) | ((low >> 2) & 0x33333333);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    write(centred((even >> (4 * i)) & 0x000f000f), out + static_cast<size_t>(2 * i) * apart);
    write(centred((odd >> (4 * i)) & 0x000f000f), out + static_cast<size_t>(2 * i + 1) * apart);
  }
}

// A page's codes less 7.5 as a page of KV::bf16, in which they are exact.
inline void open_codes(const uint8_t* page, const Parts& at, int dim, int fine, uint8_t* out) {
  const int w = dim / 16, wide = (w + 3) / 4, whole = fine / 16, left = fine % 16;
  const Halves<uint8_t> to = open_page(KV::bf16, out, dim);
  for (int block = 0; block < 4; block++)
    for (int i = 0; i < w; i++) {
      const Ints high = load_words(page + (block * w + i) * 64);
      Ints low = block < whole ? load_words(page + at.k_low + (block * w + i) * 64) : guess(high);
      if (block == whole && left > 0)
        low = select(less(load_words(kIota), splat(left)), load_words(page + at.k_low + whole * w * 64 + i * left * 4), low);
      open_words(high, low, to.k + (static_cast<size_t>(block) * dim + i * 16) * 32, 64);
    }
  const int32_t kept = static_cast<int32_t>(((1u << left) - 1) | ((1u << left) - 1) << 16);
  for (int block = 0; block < 4; block++)
    for (int i = 0; i < w; i++) {
      const Ints high = load_words(page + at.v_high + (block * w + i) * 64);
      Ints low = block < whole ? load_words(page + at.v_low + (block * w + i) * 64) : guess(high);
      if (block == whole && left > 0) {
        low = low & ~kept;
        for (int four = 0; four < left / 4; four++) {
          const Ints bytes = load_words(page + at.v_low + whole * w * 64 + (four * wide + i / 4) * 64) >> (i % 4 * 8);
          low = low | (((bytes & 15) | ((bytes & 0xf0) << 12)) << (4 * four));
        }
      }
      open_words(high, low, to.v + static_cast<size_t>(block) * dim * 32 + i * 64, static_cast<size_t>(dim) * 4);
    }
}

// A page's parameters as numbers.
struct Measures {
  alignas(64) float k_step[kMaxDim], k_center[kMaxDim], v_scale[kMaxDim], v_step[kPage], v_center[kPage];
};

inline Ints byte_of(Ints x, int i) { return (x >> (8 * i)) & 255; }
inline Ints signed_byte_of(Ints x, int i) { return (x << (24 - 8 * i)) >> 24; }
inline Ints nibble_of(Ints x, int i) { return (x >> (4 * i)) & 15; }

inline void open_measures(const uint8_t* page, const Parts& at, int dim, Measures& m) {
  const Ints nibbles = (load_words(kIota) & 7) << 2, second = less(splat(7), load_words(kIota));
  for (int i = 0; i < dim; i += 16) {
    const int byte = i / 16 % 4, group = i / 64 * 64;
    const Floats step = number8(byte_of(load_words(page + at.step + group), byte));
    store(m.k_step + i, step);
    store(m.k_center + i, step * 0.5f * to_float(signed_byte_of(load_words(page + at.center + group), byte)));
    const uint8_t* scales = page + at.scale + i / 2;  // eight nibbles in a word
    const Ints two = select(second, splat(static_cast<int32_t>(word(scales + 4))), splat(static_cast<int32_t>(word(scales))));
    store(m.v_scale + i, number4((two >> nibbles) & 15));
  }
  float base;
  std::memcpy(&base, page + at.base, 4);
  const Ints tokens = load_words(page + at.tokens);
  for (int block = 0; block < 4; block++) {
    const Floats step = number4(nibble_of(tokens, 2 * block)) * base;
    store(m.v_step + block * 16, step);
    store(m.v_center + block * 16, step * 0.5f * to_float(nibble_of(tokens, 2 * block + 1) - 8));
  }
}

// ---- sealing

// The codes of a token's sixteen numbers, x - center over step: the nearest of all sixteen codes, or of the rest's four.
inline Ints encode(Floats x, Floats inverse, bool fine) {
  const Floats level = x * inverse;
  if (fine) return clamp(round_to_int(level + kMiddle), 0, 15);
  const Ints above = less(splat(-3.5f), level) + less(splat(0.f), level) + less(splat(3.5f), level);  // each -1 or 0
  return (splat(0) - above) << 2;
}

// Codes (64, dim) of a page's tokens in their order, as words.
inline void pack_codes(const uint8_t* keys, const uint8_t* values, const Parts& at, int dim, int fine, uint8_t* page) {
  const int w = dim / 16, whole = fine / 16, left = fine % 16;
  for (int t = 0; t < kPage; t++)
    for (int i = 0; i < w; i++) {
      uint32_t high = 0, low = 0;
      for (int c = 0; c < 16; c++) {
        const uint32_t code = keys[t * dim + i * 16 + c];
        const int bit = c / 2 * 2 + c % 2 * 16;
        high |= (code >> 2) << bit, low |= (code & 3) << bit;
      }
      std::memcpy(page + (t / 16 * w + i) * 64 + t % 16 * 4, &high, 4);
      if (t >= fine) continue;
      const int to = t / 16 < whole ? (t / 16 * w + i) * 64 + t % 16 * 4 : whole * w * 64 + (i * left + t % 16) * 4;
      std::memcpy(page + at.k_low + to, &low, 4);
    }
  for (int block = 0; block < 4; block++)
    for (int d = 0; d < dim; d++) {
      uint32_t high = 0, low = 0;
      for (int t = 0; t < 16; t++) {
        const uint32_t code = values[(block * 16 + t) * dim + d];
        const int bit = t / 2 * 2 + t % 2 * 16;
        high |= (code >> 2) << bit, low |= (code & 3) << bit;
      }
      std::memcpy(page + at.v_high + (block * dim + d) * 4, &high, 4);
      if (block < whole) std::memcpy(page + at.v_low + (block * dim + d) * 4, &low, 4);
      if (block != whole || left == 0) continue;
      for (int four = 0; four < left / 4; four++)
        page[at.v_low + static_cast<size_t>(whole * w * 64 + (four * ((w + 3) / 4) + d / 64) * 64 + d % 16 * 4 + d / 16 % 4)] =
            static_cast<uint8_t>((low >> (4 * four) & 15) | (low >> (16 + 4 * four) & 15) << 4);
    }
}

// The low byte of each lane, to every fourth.
inline void put_bytes(Ints x, uint8_t* to) {
  uint8_t bytes[16];
  narrow8(x, bytes);
  for (int i = 0; i < 16; i++) to[i * 4] = bytes[i];
}

// A page of KV::bf16 as one of codes. mask: the tokens that keep four bits, `fine` of them.
void zip_seal(const uint8_t* raw, int dim, uint64_t mask, uint8_t* page) {
  static thread_local float k[kPage * kMaxDim], v[kPage * kMaxDim];
  static thread_local uint8_t keys[kPage * kMaxDim], values[kPage * kMaxDim];
  int fine = 0, rest = __builtin_popcountll(mask);
  const Parts at(dim, rest);
  std::memset(page, 0, at.size);
  std::memcpy(page + at.fine, &mask, 8);
  const int many = rest;
  for (int t = 0; t < kPage; t++) {
    const int to = mask >> t & 1 ? fine++ : rest++;
    kv_read(KV::bf16, raw, t, dim, k + to * dim, v + to * dim);
  }

  alignas(64) float size[kMaxDim];
  float largest_value = 0;
  for (int i = 0; i < dim; i += 16) {
    Floats top = load(k + i), bottom = splat(0.f) - top;  // of keys and of their negatives
    Ints values_top = splat(0);
    for (int t = 0; t < kPage; t++) {
      const Floats x = load(k + t * dim + i);
      top = max(x, top), bottom = max(splat(0.f) - x, bottom);
      values_top = max(magnitude(load(v + t * dim + i)), values_top);
    }
    store(size + i, from_bits(values_top));
    const float most = largest(from_bits(values_top));
    largest_value = most > largest_value ? most : largest_value;
    const Floats center = (top - bottom) * 0.5f;
    const Floats far = from_bits(magnitude(center)) * (1.f / 56.f);  // a center is at most 63 steps
    const Ints step = nearest8(max((top + bottom) * (1.f / 15.f), far));
    const Ints steps = clamp(round_to_int(center / (number8(step) * 0.5f)), -127, 127);
    put_bytes(step, page + at.step + i / 64 * 64 + i / 16 % 4);
    put_bytes(steps, page + at.center + i / 64 * 64 + i / 16 % 4);
  }
  for (int d = 0; d < dim; d++) {  // the root of the largest value of each channel, up to 14
    const float root = largest_value > 0 ? 14.f * __builtin_sqrtf(size[d] / largest_value) : 1.f;
    int32_t code[16];
    write(nearest4(splat(root)), code);
    page[at.scale + static_cast<size_t>(d / 2)] = static_cast<uint8_t>(page[at.scale + static_cast<size_t>(d / 2)] | code[0] << (d % 2 * 4));
  }

  Measures m;
  open_measures(page, at, dim, m);
  alignas(64) float width[kPage], middle[kPage];
  float broadest = 1e-30f;
  for (int t = 0; t < kPage; t++) {
    Floats top = splat(-3e38f), bottom = top;
    for (int i = 0; i < dim; i += 16) {
      const Floats x = load(v + t * dim + i) / load(m.v_scale + i);
      store(v + t * dim + i, x);
      top = max(x, top), bottom = max(splat(0.f) - x, bottom);
    }
    const float most = largest(top), least = -largest(bottom);
    width[t] = (most - least) / 15.f, middle[t] = (most + least) / 2.f;
    broadest = width[t] > broadest ? width[t] : broadest;
  }
  const float base = broadest / 14.f;
  std::memcpy(page + at.base, &base, 4);
  for (int block = 0; block < 4; block++) {
    const Ints step = nearest4(load(width + block * 16) / splat(base));
    const Ints center = clamp(round_to_int(load(middle + block * 16) / (number4(step) * base * 0.5f)), -8, 7) + 8;
    put_bytes(step | (center << 4), page + at.tokens + block);
  }
  open_measures(page, at, dim, m);
  for (int t = 0; t < kPage; t++)
    for (int i = 0; i < dim; i += 16) {
      narrow8(encode(load(k + t * dim + i) - load(m.k_center + i), splat(1.f) / load(m.k_step + i), t < many), keys + t * dim + i);
      narrow8(encode(load(v + t * dim + i) - splat(m.v_center[t]), splat(1.f / m.v_step[t]), t < many), values + t * dim + i);
    }
  pack_codes(keys, values, at, dim, many, page);
}

// Sixty-four tokens of a page, in order of position: k, v (64, dim), rows `stride` apart.
void zip_open(const uint8_t* page, int dim, int fine, float* k, float* v, ptrdiff_t stride) {
  const Parts at(dim, fine);
  alignas(64) uint8_t room[kPage * kMaxDim * 4];
  Measures m;
  open_measures(page, at, dim, m);
  open_codes(page, at, dim, fine, room);
  uint64_t mask;
  std::memcpy(&mask, page + at.fine, 8);
  int ahead = 0, behind = fine;
  for (int t = 0; t < kPage; t++) {
    const int from = mask >> t & 1 ? ahead++ : behind++;
    float *key = k + t * stride, *value = v + t * stride;
    kv_read(KV::bf16, room, from, dim, key, value);
    for (int d = 0; d < dim; d++) {
      key[d] = key[d] * m.k_step[d] + m.k_center[d];
      value[d] = (value[d] * m.v_step[from] + m.v_center[from]) * m.v_scale[d];
    }
  }
}
