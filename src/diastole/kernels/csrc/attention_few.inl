// A few query rows on a page, without tile registers. Included by attention_amx.inl.
//
// The products of a tile in a tile's order (see tiles.hpp), so the same bits as sixteen rows get, but what one step gives
// does not have to go through memory to the next one: for few rows whose page comes from afar, a tile's work is mostly
// waiting. Where the page is near (see attention_codes.inl) tiles are faster for any number of rows.

constexpr int kFewQueries = 6;

// Tiles take and give denormals as zeros; while this lives, so does everything else on this thread.
class DenormalsAreZero {
 public:
  DenormalsAreZero() {
    asm volatile("stmxcsr %0" : "=m"(before_)::"memory");
    const uint32_t now = before_ | 0x8040;
    asm volatile("ldmxcsr %0" ::"m"(now) : "memory");
  }
  ~DenormalsAreZero() { asm volatile("ldmxcsr %0" ::"m"(before_) : "memory"); }

 private:
  uint32_t before_;
};

inline Floats even_halves(Ints pairs) { return from_bits(pairs << 16); }
inline Floats odd_halves(Ints pairs) { return from_bits(pairs & static_cast<int32_t>(0xffff0000u)); }

// n bf16, a multiple of 32, as floats: of every 32 first those at even places, then those at odd ones.
inline void part_halves(const bf16* x, int n, float* out) {
  for (int i = 0; i < n; i += 32) {
    const Ints pairs = load_words(x + i);
    store(out + i, even_halves(pairs));
    store(out + i + 16, odd_halves(pairs));
  }
}

// Scores of a page: s (R, 64).
template <int R>
void score_few(const Halves<const uint8_t>& page, int dim, Ahead next, const bf16* rows, const Seen& seen, float* s) {
  alignas(64) float query[R * kMaxDim];
  part_halves(rows, R * dim, query);
  for (int b = seen.first / 16; b < (seen.last + 15) / 16; b++) {
    const ptrdiff_t ahead = next.at(b * 16);
    Floats sum[R];
    for (int r = 0; r < R; r++) sum[r] = splat(0.f);
    for (int i = 0; i < dim; i += 32) {
      const uint8_t* k = page.k + (static_cast<size_t>(b) * dim + i) * 32;
      Floats even[R], odd[R];
      for (int r = 0; r < R; r++) even[r] = odd[r] = splat(0.f);
      for (int j = 0; j < 16; j++) {
        const Ints pairs = load_words(k + j * 64);
        prefetch(k + j * 64 + ahead);
        const Floats x = even_halves(pairs), y = odd_halves(pairs);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
          even[r] = fma(x, splat(query[r * dim + i + j]), even[r]);
          odd[r] = fma(y, splat(query[r * dim + i + 16 + j]), odd[r]);
        }
      }
      for (int r = 0; r < R; r++) sum[r] = sum[r] + (even[r] + odd[r]);
    }
    for (int r = 0; r < R; r++) store(s + r * kPage + b * 16, sum[r]);
  }
}

// Adds the weighted values of a page to out (R, dim): weights (R, 64).
template <int R>
void add_few(const uint8_t* v, int dim, Ahead next, const bf16* weights, const Seen& seen, float* out) {
  alignas(64) float weight[R * kPage];
  part_halves(weights, R * kPage, weight);
  for (int half = 0; half < 2; half++) {
    const ptrdiff_t ahead = next.at(half * 32);
    const int from = seen.first / 2 - half * 16, to = (seen.last + 1) / 2 - half * 16;  // pairs of tokens that are seen
    for (int c = 0; c < dim; c += 32) {
      Floats even[R][2], odd[R][2];
      for (int r = 0; r < R; r++) even[r][0] = even[r][1] = odd[r][0] = odd[r][1] = splat(0.f);
      const uint8_t* at = v + (static_cast<size_t>(half) * 16 * dim + c) * 4;
      for (int j = from > 0 ? from : 0; j < (to < 16 ? to : 16); j++) {
        const uint8_t* line = at + static_cast<ptrdiff_t>(j) * dim * 4;
        const Ints a = load_words(line), b = load_words(line + 64);
        prefetch(line + ahead);
        prefetch(line + 64 + ahead);
        const Floats a0 = even_halves(a), a1 = odd_halves(a), b0 = even_halves(b), b1 = odd_halves(b);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
          const float* w = weight + r * kPage + half * 32 + j;
          even[r][0] = fma(a0, splat(w[0]), even[r][0]);
          even[r][1] = fma(b0, splat(w[0]), even[r][1]);
          odd[r][0] = fma(a1, splat(w[16]), odd[r][0]);
          odd[r][1] = fma(b1, splat(w[16]), odd[r][1]);
        }
      }
      for (int r = 0; r < R; r++)
        for (int x = 0; x < 2; x++) {
          float* to_row = out + r * dim + c + x * 16;
          store(to_row, load(to_row) + (even[r][x] + odd[r][x]));
        }
    }
  }
}

// f(Number<R>()) for the R = n rows.
template <int R = kFewQueries, class F>
inline void for_rows(int n, const F& f) {
  if (n == R) return f(Number<R>());
  if constexpr (R > 1) for_rows<R - 1>(n, f);
}
