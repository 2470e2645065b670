// What one instruction set offers: plain functions over ranges of rows, row blocks or tasks. The operators in ops.cpp
// spread the ranges over threads; a whole step in one call can use the same functions inside one parallel region.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "packed weights and pages are laid out for little-endian machines"
#endif

namespace diastole {

enum class Weight { f32, bf16, q8, q4, q4s, q4b };
enum class KV { f32, bf16, int8, rows, rows8, zip };  // rows, rows8: see rows.inl; zip: pages of bf16 and of codes, see zip.inl
// How tokens of a kind are multiplied, when they have been brought together.
inline KV multiplied(KV kind) { return kind == KV::rows ? KV::bf16 : kind == KV::rows8 ? KV::int8 : kind; }

constexpr int kPage = 64;    // tokens per page
constexpr int kSplit = 512;  // tokens whose attention is computed apart and then merged, at fixed places, if nobody wants others
constexpr int kRows = 16;    // weight rows per block: one vector lane each
constexpr int kGroup = 32;   // weights that share a scale
constexpr int kFine = 16;    // activations that share a scale: half a group, which halves their rounding error
constexpr int kTile = 48;    // most query rows (tokens x heads of a group) that walk the pages together
constexpr int kMaxDim = 256;
constexpr int kMaxRank = 1024;  // columns that keys of low rank have
constexpr int kBlock4 = 320, kBlock8 = 512;  // bytes of a block of 16 rows x 32 columns
constexpr int kNibbles = 256;                // and of its numbers of four bits
constexpr float kUnseen = -1e30f;            // the score of nothing

inline size_t factor_bytes(Weight kind, int groups) {  // of sixteen rows, before their numbers
  if (kind == Weight::q4) return 0;
  return static_cast<size_t>((kind == Weight::q4b ? 4 * kRows : 0) + groups * 2 * kRows + 63) / 64 * 64;
}
inline size_t four_bytes(Weight kind, int groups) {  // of sixteen rows, in all
  return factor_bytes(kind, groups) + static_cast<size_t>(groups) * (kind == Weight::q4 ? kBlock4 : kNibbles);
}

// A packed matrix of n x k; n is padded to whole blocks of 16 rows.
//
//   q4    block = 16 rows x 32 columns, 320 bytes: nibbles[4][16 rows][4] | d f16[16] | m f16[16]
//         byte [j][r][i] holds column 4j+i in its low and column 16+4j+i in its high half; a weight is d q + m
//   q4s   a weight is d (q - 8): per row of blocks d f16[16] of each, up to whole lines | nibbles of each
//   q4b   a weight is s/255 (a (q - 8) + 4 (b + z)): per row of blocks s f16[16], z f16[16] | a u8[16], b u8[16] of each, up to
//         whole lines | nibbles of each
//   q8    blocks of 512 bytes s8[8][16 rows][4], and behind all of them d f16[16] per block
//   bf16  per block of rows: pairs of columns, [k/2][16 rows][2]
//   f32   per block of rows: [k][16 rows]
struct Matrix {
  Weight kind;
  int n, k;
  const uint8_t* data;

  int blocks() const { return (n + kRows - 1) / kRows; }
  int groups() const { return k / kGroup; }
};

// What is read after some products: runs of bytes, of which these fetch some lines as they go. Several rows wait for the
// processor and what is read for memory, so one after the other each would wait alone.
struct Errands {
  const uint8_t* base;
  const int32_t* runs;          // run i begins at base + runs[i] * each
  size_t each;                  // bytes of a run, whole lines
  uint32_t lines;               // of all runs
  std::atomic<uint32_t>* next;  // the first that nobody has fetched
};

// Rows of activations, and the form in which a matrix kind multiplies them: this one, or where there are tile registers
// those of linear_digits.inl and linear_amx.inl.
struct Rows {
  int t, k;
  const float* f;     // f32: rows with this stride
  ptrdiff_t stride;   //
  uint16_t* h;        // bf16: (t, k)
  int8_t* q;          // whole numbers: (t, k), with per half group
  float* scale;       //   what q is multiplied with: (t, k/16),
  int32_t* total;     //   the sum of q: (t, k/16),
  float* offset;      // and per group the sum of scale times q: (t, k/32)
  const Errands* errands = nullptr;  // for who multiplies them
};

struct Out {
  float* y;
  ptrdiff_t stride;
  const float* bias;  // (n,) or none
  bool add;           // to what y holds

  // Only rows from t0 on and columns from n0 on are there, the first of them at y.
  static Out at(float* y, ptrdiff_t stride, int t0, int n0) { return {y - (t0 * stride + n0), stride, nullptr, false}; }
};

// Rows t0..t1 and columns c0..c1 of activations, the first of them at x.
struct Patch {
  const float* x;
  ptrdiff_t stride;
  int t0, t1, c0, c1;
};

// One head's pages among those of all heads, which lie one after the other: its page `id` is number first + id * step.
struct Lane {
  size_t first, step;
  size_t cell(size_t id) const { return first + id * step; }
};

// The attention of some rows of one stream over one key/value head. Heads share its pages and what rows see of them, or
// have their own.
struct Look {
  const float* q;       // row t, head h at q + t * q_stride + h * dim
  ptrdiff_t q_stride;
  const uint8_t* pages;  // of this layer: (pages, kv_heads, page_bytes)
  KV kind;
  int dim, kv_heads, group;  // group: query heads per key/value head
  size_t page_bytes;
  const int32_t* table;  // page ids of this stream, those of head g from g * table_step on
  ptrdiff_t table_step;
  const int32_t *lo, *hi;  // of row t, head g at t * row_step + g * head_step
  ptrdiff_t row_step, head_step;
  float scale;
  const uint8_t* next;  // the page that this thread probably looks at afterwards, or null
  int split_tokens = kSplit;  // whole pages
  bool near = false;          // they are in this thread's cache
  // KV::zip: the pages are of codes, `fine` tokens of each with four bits; those with a slot that is not negative are
  // found in bf16 instead, and slots have pages of their own.
  const int32_t* slots = nullptr;
  const uint8_t* raw = nullptr;
  size_t raw_bytes = 0;
  int fine = 0;
  const Lane* lanes = nullptr;  // where heads have pages of their own: one for each; null: those of a page lie side by side

  int from(int t, int g) const { return lo[t * row_step + g * head_step]; }
  int to(int t, int g) const { return hi[t * row_step + g * head_step]; }
  const uint8_t* page(int place, int g) const {
    const size_t id = static_cast<size_t>(table[place + g * table_step]);
    if (lanes != nullptr) return pages + lanes[g].cell(id) * page_bytes;
    return pages + (id * static_cast<size_t>(kv_heads) + static_cast<size_t>(g)) * page_bytes;
  }
  // The page in bf16, null if it is one of codes.
  const uint8_t* unsealed(int place, int g) const {
    const int32_t slot = slots[table[place + g * table_step]];
    return slot < 0 ? nullptr : raw + (static_cast<size_t>(slot) * static_cast<size_t>(kv_heads) + static_cast<size_t>(g)) * raw_bytes;
  }
};

// Unnormalised result of one row over one split: weighted values, largest score, sum of exponentials.
struct Partial {
  alignas(64) float out[kMaxDim];
  float most, sum;
};

// Room for a row of blocks opened to bf16, and its scales as floats.
inline size_t shelf_bytes(int k) { return static_cast<size_t>(k) * kRows * 2 + static_cast<size_t>(k) / kGroup * kRows * 8; }

struct Kernels {
  const char* name;
  bool tiles;  // it has tile registers: many rows at once are worth a larger share of the cache
  // Brings some rows and columns, c0 and c1 multiples of kGroup or the end, into the form for a kind.
  void (*prepare)(Weight kind, const Rows& rows, const Patch& from);
  // Rows t0..t1 against row blocks b0..b1. shelf: shelf_bytes(k) of the calling thread. Of x, whole sixteens are read.
  void (*multiply)(const Matrix& w, const Rows& x, const Out& out, int b0, int b1, int t0, int t1, uint8_t* shelf);
  void (*embed)(const Matrix& w, const int32_t* ids, float* out, ptrdiff_t stride, int t0, int t1);
  void (*rmsnorm)(const float* x, const float* weight, float eps, float* out, int k);
  void (*rope)(float* x, const float* table, int heads, int dim, int rotated);
  void (*gated)(const float* gate, const float* up, bool gelu, float* out, int n);
  // Sums over pixels by channel, and what a norm does to each pixel; scale and shift hold whole sixteens.
  void (*moments)(const float* x, ptrdiff_t step, int n, const float* add, double* sum, double* square, int c);
  void (*rescale)(const float* x, ptrdiff_t step, int n, const float* scale, const float* shift, bool silu, float* out, ptrdiff_t out_step, int c);
  void (*kv_write)(KV kind, uint8_t* page, int slot, int dim, const float* k, const float* v);
  void (*kv_read)(KV kind, const uint8_t* page, int slot, int dim, float* k, float* v);
  // Rows t0..t1 and all heads of key/value head g over split s: writes one Partial per (row, head of the group).
  void (*attend)(const Look& look, int g, int t0, int t1, int split, Partial* partials);
  // The keys of a page of KV::bf16 that holds no values.
  void (*key_write)(uint8_t* page, int slot, int dim, const float* k);
  // A token of a page of labels, `count` channels of at most dim: see labels.inl.
  void (*label_write)(uint8_t* page, int slot, int dim, const float* channels, int count);
  // A page of KV::bf16 as one of codes, in which the tokens of `mask` keep four bits; and such a page as numbers, k and v
  // (64, dim) in order of position, rows `stride` apart.
  void (*zip_seal)(const uint8_t* raw, int dim, uint64_t mask, uint8_t* page);
  void (*zip_open)(const uint8_t* page, int dim, int fine, float* k, float* v, ptrdiff_t stride);
  // Scores of the tokens that row t and the heads of key/value head g see in a split: s[head of the group][token of it].
  // What is not seen is left alone.
  void (*score)(const Look& look, int g, int t, int split, float* s, ptrdiff_t stride);
  // The largest of a group's scores for row t and every key/value head of pages that hold keys alone, in bf16: s (kv heads,
  // stride), from token 0 on. What is not seen is left alone.
  void (*score_best)(const Look& look, int t, int split, float* s, ptrdiff_t stride);
  // The same of pages of labels.
  void (*score_labels)(const Look& look, int t, int split, float* s, ptrdiff_t stride);
  // Scores of all tokens of a split for rows t0..t1 and the heads of key/value head g, at most kTile together: one row of s
  // each, kUnseen for what is not seen.
  void (*score_rows)(const Look& look, int g, int t0, int t1, int split, float* s, ptrdiff_t stride);
  // Asks for n tokens of KV::rows or rows8 that are going to be copied.
  void (*fetch)(const Look& look, int g, const int64_t* at, int n);
  // Copies n tokens, rows `at` = page * 64 + slot, onto pages of room: see `multiplied`.
  void (*gather)(const Look& look, int g, const int64_t* at, int n, uint8_t* room);
  // Products of r rows q (r, n), even columns before odd ones, with bf16 rows (m, n): out (r, m).
  void (*dots)(const float* q, int r, int n, const uint16_t* rows, int m, float* out);
  // The largest product of r query rows, spread, with the `per` rows that stand for a page: see bounds.inl.
  float (*reach)(const float* q, int r, int steps, int per, const uint16_t* page);
  // Adds a split's partial to what the earlier splits gave.
  void (*merge)(Partial& whole, const Partial& part, int dim);
  // Passes over a row of scores: see sampling.inl.
  float (*most)(const float* x, int n);
  double (*weigh)(const float* x, int n, float t, float top, float* w);
  double (*soften)(float* x, int n);
  void (*tally)(float* w, int n, float by, float* columns, float* pages);
  int (*at_least)(const float* x, int n, float least, int32_t* places);
  // Places of the k largest, in order: see choosing.inl. There must be room for n + 16 in places and values.
  int (*pick)(const float* x, int n, int k, int32_t* places, float* values);
  void (*tops)(const float* x, int n, float* out);
  void (*raise)(const float* x, int n, float off, float* to);
  int (*contenders)(const float* w, int n, uint64_t key, float reach, int32_t* places);
  // Keys of eight tokens from a (8, rank) and a basis, and a sum of exponentials: see shadow.inl.
  void (*rebuild)(const int16_t* a, int rank, const float* basis, ptrdiff_t stride, int dim, const float* table, int rotated, uint16_t* out);
  float (*exp_sum)(const float* x, int n, float top);
  // Does nothing but the multiply-add of a weight kind for so many rounds; returns how many it did.
  double (*peak)(Weight kind, int64_t rounds);
  // Reads memory and adds its words up.
  int32_t (*sweep)(const uint8_t* p, size_t size);
};

size_t kv_page_bytes(KV kind, int dim);
size_t zip_page_bytes(int dim, int fine);

// The best that this machine runs, or the one asked for by name; null if unknown or not supported here.
const Kernels* choose(const char* name);

}  // namespace diastole
