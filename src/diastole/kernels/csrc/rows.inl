// Pages from which single tokens are picked: each is one run of bytes, because what a token from afar costs is mostly finding
// the page of memory that it is in. Included by pages.inl.
//
//   rows    [64 tokens][K dim, V dim]   in bf16
//   rows8   [64 tokens][K dim, V dim]   in int8
//
// What is multiplied is a page of KV::bf16 or KV::int8, into which tokens are brought before: one by one, or a page as a
// whole.
//
// A scale beside a row of rows8 would be one more line of memory to wait for, as long as half of its numbers are. So it is
// one of 255 steps, eight to an octave, and its number is in the lowest bits of the row's first eight bytes, which are
// rounded to the nearest number that ends with their bit. Rows that hold what is no number have the number 255.

constexpr bool in_rows(KV kind) { return kind == KV::rows || kind == KV::rows8; }

struct Scales {
  float step[256], most[256];  // the largest magnitude that a step is for
  constexpr Scales() : step(), most() {
    constexpr float eighths[8] = {1.f, 1.09050773f, 1.18920712f, 1.29683955f, 1.41421356f, 1.54221083f, 1.68179283f, 1.83400809f};
    float octave = 1.f / (1 << 20);
    for (int e = 0; e < 256; e += 8, octave *= 2)
      for (int i = 0; i < 8; i++) {
        step[e + i] = octave * eighths[i];
        most[e + i] = step[e + i] * 127.f;
      }
    step[255] = __builtin_nanf("");
  }
};
constexpr Scales kScales;
constexpr uint64_t kLowestBits = 0x0101010101010101;

inline int scale_number(const float* x, int dim) {
  Ints top = splat(0);
  for (int i = 0; i < dim; i += 16) top = max(magnitude(load(x + i)), top);
  const float most = as_float(largest(top));
  int number = 0;
  for (int half = 128; half > 0; half /= 2)
    if (!(most <= kScales.most[number + half - 1])) number += half;
  return number;
}

inline int scale_number(const int8_t* row) {  // bit i is at 8 i; the product brings it to 56 + i
  uint64_t first;
  std::memcpy(&first, row, 8);
  return static_cast<int>((first & kLowestBits) * 0x0102040810204080 >> 56);
}

inline void to_row8(const float* x, int dim, int8_t* out) {
  const int number = scale_number(x, dim);
  if (number == 255) {
    for (int i = 0; i < dim; i++) out[i] = i < 8;
    return;
  }
  const float inverse = 1.f / kScales.step[number];
  for (int i = 0; i < dim; i += 16) narrow8(round_to_int(load(x + i) * inverse), out + i);
  for (int i = 0; i < 8; i++) {
    const int bit = number >> i & 1, q = 2 * static_cast<int>(__builtin_rintf((x[i] * inverse - static_cast<float>(bit)) * 0.5f)) + bit;
    out[i] = static_cast<int8_t>(q > 127 ? q - 2 : q);
  }
}

// The bytes of a key or a value.
constexpr int row_bytes(KV kind, int dim) { return kind == KV::rows8 ? dim : 2 * dim; }

// Where a token's lie.
struct Row {
  const uint8_t *key, *value;
  Row() = default;
  Row(KV kind, const uint8_t* page, int slot, int dim) : key(page + static_cast<ptrdiff_t>(slot) * 2 * row_bytes(kind, dim)), value(key + row_bytes(kind, dim)) {}
};

inline void row_write(KV kind, uint8_t* to, int dim, const float* x) {
  if (kind == KV::rows8) return to_row8(x, dim, reinterpret_cast<int8_t*>(to));
  for (int i = 0; i < dim; i += 16) store_bf16(reinterpret_cast<bf16*>(to) + i, load(x + i));
}

inline void row_read(KV kind, const uint8_t* from, int dim, float* out) {
  if (kind == KV::rows8) {
    const int8_t* row = reinterpret_cast<const int8_t*>(from);
    const float step = kScales.step[scale_number(row)];
    for (int i = 0; i < dim; i++) out[i] = step * static_cast<float>(row[i]);
    return;
  }
  for (int i = 0; i < dim; i++) out[i] = from_bf16(reinterpret_cast<const bf16*>(from)[i]);
}

inline void fetch_row(KV kind, const uint8_t* page, int slot, int dim) {
  const int size = 2 * row_bytes(kind, dim);
  for (int i = 0; i < size; i += 64) prefetch(page + static_cast<ptrdiff_t>(slot) * size + i);
}

inline void fetch_keys(KV kind, const uint8_t* page, int n, int dim) {
  for (int t = 0; page != nullptr && t < n; t++)
    for (int i = 0; i < row_bytes(kind, dim); i += 64) prefetch(Row(kind, page, t, dim).key + i);
}

// ---- as pages that are multiplied

// Rows of sixteen tokens as a block of keys: words with tokens in the lanes.
inline void block_keys(const Row* rows, int bytes, uint8_t* out) {
  int i = 0;
  for (; i + 64 <= bytes; i += 64) {
    const uint8_t* from[16];
    for (int t = 0; t < 16; t++) from[t] = rows[t].key + i;
    transpose16(from, out + i * 16);
  }
  for (; i < bytes; i += 4)
    for (int t = 0; t < 16; t++) std::memcpy(out + i * 16 + t * 4, rows[t].key + i, 4);
}

inline void pair_values(const uint8_t* from, const uint8_t* with, int dim, uint8_t* out) {
  const bf16 *a = reinterpret_cast<const bf16*>(from), *b = reinterpret_cast<const bf16*>(with);
  uint32_t* to = reinterpret_cast<uint32_t*>(out);
  for (int i = 0; i < dim; i++) to[i] = static_cast<uint32_t>(a[i]) | static_cast<uint32_t>(b[i]) << 16;
}

inline void quad_values(const Row* rows, int dim, uint8_t* out) {
  const uint8_t *a = rows[0].value, *b = rows[1].value, *c = rows[2].value, *d = rows[3].value;
  uint32_t* to = reinterpret_cast<uint32_t*>(out);
  for (int i = 0; i < dim; i++) to[i] = static_cast<uint32_t>(a[i]) | static_cast<uint32_t>(b[i]) << 8 | static_cast<uint32_t>(c[i]) << 16 | static_cast<uint32_t>(d[i]) << 24;
}

// Sixteen tokens, `first` of a page and those behind it.
__attribute__((noinline)) void form_block(KV kind, const Row* rows, int dim, int first, bool values, uint8_t* room) {
  const Halves<uint8_t> to = open_page(multiplied(kind), room, dim);
  const int bytes = row_bytes(kind, dim);
  const size_t at = static_cast<size_t>(first) * bytes;
  block_keys(rows, bytes, to.k + at);
  if (kind == KV::rows8) {
    float* scales = reinterpret_cast<float*>(to.scales) + first;
    for (int t = 0; t < 16; t++) {
      scales[t] = kScales.step[scale_number(reinterpret_cast<const int8_t*>(rows[t].key))];
      if (values) scales[kPage + t] = kScales.step[scale_number(reinterpret_cast<const int8_t*>(rows[t].value))];
    }
    for (int t = 0; values && t < 16; t += 4) quad_values(rows + t, dim, to.v + at + static_cast<size_t>(t) * bytes);
    return;
  }
  for (int t = 0; values && t < 16; t += 2) pair_values(rows[t].value, rows[t + 1].value, dim, to.v + at + static_cast<size_t>(t) * bytes);
}

// n tokens, at most 64, as a page that is multiplied: place(t) is one's Row; the last one stands for those that are missing
// from a block.
template <class Place>
inline void form(KV kind, int n, int dim, bool values, uint8_t* room, const Place& place) {
  for (int first = 0; first < n; first += 16) {
    Row rows[16];
    for (int t = 0; t < 16; t++) rows[t] = first + t < n ? place(first + t) : rows[t - 1];
    form_block(kind, rows, dim, first, values, room);
  }
}

// Tokens 0 <= t < n of a page, or their keys alone.
inline const uint8_t* form_page(KV kind, const uint8_t* page, int n, int dim, uint8_t* room) {
  form(kind, n, dim, true, room, [&](int t) { return Row(kind, page, t, dim); });
  return room;
}
inline const uint8_t* form_keys(KV kind, const uint8_t* page, int n, int dim, uint8_t* room) {
  form(kind, n, dim, false, room, [&](int t) { return Row(kind, page, t, dim); });
  return room;
}

// Keys of a page in the form that is multiplied, of which tokens below `last` are seen; those of the page that comes next,
// or null, are fetched.
inline const uint8_t* formed_keys(KV kind, const uint8_t* page, const uint8_t* next, int last, int dim, uint8_t* room) {
  if (!in_rows(kind)) return page;
  fetch_keys(kind, next, kPage, dim);
  return form_keys(kind, page, last < kPage ? last : kPage, dim, room);
}

// A page in the form that is multiplied, of which tokens below `last` are seen.
inline const uint8_t* formed(KV kind, const uint8_t* page, int last, int dim, uint8_t* room) {
  return in_rows(kind) ? form_page(kind, page, last < kPage ? last : kPage, dim, room) : page;
}
