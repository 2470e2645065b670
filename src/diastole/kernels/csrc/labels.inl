// Labels: some channels of keys in four bits, to choose tokens by. Included by isa.inl after attention.inl.
//
// A page of one head is four blocks of 16 tokens: [channels/8][16 tokens][4 bytes], channels 8j+i in the low and 8j+4+i in
// the high halves of bytes i; then [16 tokens] of step and least value, two bf16: a channel is least + step * code.

inline size_t label_block(int dim) { return (static_cast<size_t>(dim) / 8 + 1) * 64; }

// count of dim channels are there, one at least; dim is a multiple of 16, and so many can be read.
void label_write(uint8_t* page, int slot, int dim, const float* x, int count) {
  const Ints lanes = load_words(kIota);
  const auto there = [&](int i) { return less(lanes + i, splat(count)); };
  Floats most = splat(x[0]), under = splat(-x[0]);  // the least, negated
  for (int i = 0; i < dim; i += 16) {
    const Floats v = select(there(i), load(x + i), splat(x[0]));
    most = max(v, most);
    under = max(v * -1.f, under);
  }
  const float least = 0.f - largest(under);  // no negative zero
  alignas(64) bf16 pair[16];
  store_bf16(pair, select(less(lanes, splat(1)), splat((largest(most) - least) / 15.f), splat(least)));
  const float step = from_bf16(pair[0]), low = from_bf16(pair[1]);
  alignas(64) uint8_t code[kMaxDim];
  for (int i = 0; i < dim; i += 16) {
    Floats v = (load(x + i) - low) / splat(step);
    v = select(less(v, splat(15.f)), v, splat(15.f));
    const Ints some = there(i) & less(splat(0.f), v) & less(splat(0.f), splat(step));  // neither without a step, nor NaN
    narrow8(round_to_int(select(some, v, splat(0.f))), code + i);
  }
  uint8_t* block = page + static_cast<size_t>(slot / 16) * label_block(dim) + slot % 16 * 4;
  for (int j = 0; j < dim; j += 8, block += 64) {
    const uint32_t both = word(code + j) | word(code + j + 4) << 4;
    std::memcpy(block, &both, 4);
  }
  std::memcpy(block, pair, 4);
}

// The labels of a block against R queries in int8: the largest score of each token.
template <int R>
inline Floats best_of_labels(const uint8_t* block, ptrdiff_t ahead, int dim, const Query* q) {
  const Ints half = splat(0x0f0f0f0f);
  Ints acc[R];
  for (int r = 0; r < R; r++) acc[r] = splat(0);
  int i = 0;
  for (; i < dim; i += 8, block += 64) {
    const Ints v = load_words(block);
    prefetch(block + ahead);
    const Ints low = v & half, high = (v >> 4) & half;
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
      acc[r] = dot4_small(dot4_small(acc[r], low, static_cast<int32_t>(word(q[r].q + i))), high, static_cast<int32_t>(word(q[r].q + i + 4)));
  }
  const Ints pairs = load_words(block);
  prefetch(block + ahead);
  const Floats step = from_bits(pairs << 16), least = from_bits(pairs & static_cast<int32_t>(0xffff0000u));
  Floats best = splat(-__builtin_inff());
  for (int r = 0; r < R; r++)
    best = max(fma(least, splat(static_cast<float>(q[r].total)), to_float(acc[r]) * step) * splat(q[r].scale), best);
  return best;
}

template <int R = 6>
inline Floats best_of_labels(const uint8_t* block, ptrdiff_t ahead, int dim, const Query* q, int n) {
  if (n == R) return best_of_labels<R>(block, ahead, dim, q);
  if constexpr (R > 1) return best_of_labels<R - 1>(block, ahead, dim, q, n);
  return splat(0.f);
}

// As score_best, for labels.
void score_labels(const Look& look, int t, int split, float* s, ptrdiff_t stride) {
  Query queries[kTile];
  const int dim = look.dim, n = look.group, lo = look.from(t, 0), hi = look.to(t, 0);
  const int begin = split * kSplit, first = lo > begin ? lo : begin, last = hi < begin + kSplit ? hi : begin + kSplit;
  if (first >= last) return;
  for (int g0 = 0, heads = kTile / n; g0 < look.kv_heads; g0 += heads) {
    const int g1 = g0 + heads < look.kv_heads ? g0 + heads : look.kv_heads;
    for (int i = 0; i < (g1 - g0) * n; i++)
      open_query(KV::int8, look.q + t * look.q_stride + static_cast<ptrdiff_t>(g0 * n + i) * dim, look.scale, dim, queries[i]);
    for (int page = first / kPage; page * kPage < last; page++) {
      const int a = first - page * kPage, b = last - page * kPage, from = a > 0 ? a : 0, to = b < kPage ? b : kPage;
      for (int g = g0; g < g1; g++) {
        const uint8_t* at = look.page(page, g);
        const ptrdiff_t ahead = (page + 1) * kPage < last ? look.page(page + 1, g) - at : 0;
        const Query* own = queries + (g - g0) * n;
        alignas(64) float here[kPage];
        for (int c = from / 16; c < (to + 15) / 16; c++) {
          const uint8_t* block = at + static_cast<size_t>(c) * label_block(dim);
          Floats best = best_of_labels(block, ahead, dim, own, n < 6 ? n : 6);
          for (int i = 6; i < n; i += 6) best = max(best_of_labels(block, 0, dim, own + i, n - i < 6 ? n - i : 6), best);
          store(here + c * 16, best);
        }
        std::memcpy(s + g * stride + page * kPage + from, here + from, sizeof(float) * static_cast<size_t>(to - from));
      }
    }
  }
}
