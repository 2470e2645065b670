// Operators for who attends to a part of the cache only: scores to choose by, the choice, attention over what is chosen.
#pragma once
#include "ops.hpp"

namespace diastole {

// Scores of what rows see, -inf for the rest, to s (rows, heads of s, n): either every query head's, or the largest of
// those that share a key/value head. less (rows, query heads): what is taken off each head's scores before, or null.
void scores(const Kernels& isa, const Look& look, const std::vector<Span>& streams, const int32_t* tables, ptrdiff_t table_stride,
            const float* less, float* s, int heads, int n);

// Places of the k largest of x (n,), in order of place; of equal ones the first. What is NaN or -inf is never chosen.
// Returns how many there are, at most k.
int top_places(const Kernels& isa, const float* x, int n, int k, int32_t* places);

// Keys k (t, heads, dim) alone, to rows of a buffer of them in bf16, or as labels; channels (heads, count): of each only
// these, then zeros; null, where all are kept.
enum class Alone { bf16, labels };
size_t alone_page_bytes(Alone form, int dim);
void keys_write(const Kernels& isa, Alone form, const Pages& to, const int64_t* rows, int t, const float* k, ptrdiff_t stride, int dim,
                const int32_t* channels, int count);

// Tokens chosen by some channels of their keys, which a buffer of keys alone holds: its dimension is `look.dim`, a multiple
// of 16, and what is beyond `channels` of it is zero.
struct Choice {
  const int32_t* which;          // (r,): a row of q
  const int32_t* tables;         // (r, width)
  const int32_t *lo, *hi, *most;  // (r,): what a row sees, and how many tokens it gets
  const int32_t* channels;       // (kv heads, count)
  int r, width, count;
  int sink, recent;  // so many of the first and of the latest are always among them
};
// To at (r, kv heads, wide): page * 64 + slot of those with the largest product with any query head of their group, in
// order; counts (r, kv heads) how many. look.q: rows of whole query heads, each of head_dim.
void choose(const Kernels& isa, Alone form, const Look& look, int head_dim, const Choice& choice, int wide, int64_t* at, int32_t* counts);

// The same by their whole keys: those with the largest softmax weight that any query head of a group gives them. lse (rows of
// q, query heads): what its softmax divides by. choice.channels and count are not looked at.
void choose_by_scores(const Kernels& isa, const Look& look, const Choice& choice, const float* lse, int wide, int64_t* at, int32_t* counts);

// What some rows attend to, by sets: one for all query heads that share it.
struct Chosen {
  const int32_t* which;  // (r,): a row of q
  const int64_t* at;     // (r, sets, width): tokens as page * 64 + slot
  const int32_t* counts;  // (r, sets)
  int r, sets, width;
};
void attend_tokens(const Kernels& isa, const Look& look, const Chosen& chosen, float* out, float* lse);

// Largest product of any query head of a group with any of the `per` rows of bf16 that stand for a page, or with each of
// them: index (pages, kv heads, per, look.dim), out (rows, kv heads, width) or (rows, kv heads, width * per).
void page_scores(const Kernels& isa, const Look& look, const uint16_t* index, int per, const std::vector<Span>& streams,
                 const int32_t* tables, int width, const int32_t* n, bool each, float* out);

// Pages of r rows: row i has those in its row of the table up to place blocks[i].
struct Bounded {
  const int32_t* tables;  // (r, width)
  const int32_t* blocks;  // (r,)
  const int32_t* heads;   // (kv heads,): 0 where nothing is chosen, else 1 + the head's place in the index
  const int32_t* runs;    // (r,): where each row's pages go
  int r, width, k, first, recent;
  int kept;  // heads of the index
};
// Places of k pages for each row and head that chooses, in order: the first and the most recent, and of the others those
// that the group's keys may score highest on. index (pages, kept, 2 * look.dim * per) in the order of bounds.inl, of each
// row the largest of its keys by channel and then the smallest; places (r, kv heads, k), and their ids to the beginnings of
// pages[runs[i]] (kv heads, stride).
void pick_pages(const Kernels& isa, const Look& look, const uint16_t* index, int per, const Bounded& rows, int32_t* places,
                int32_t* pages, ptrdiff_t stride);

}  // namespace diastole
