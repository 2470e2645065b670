// Operators for who looks before attending: how much attention each token gets from some rows, which lines of a block hold
// most of it, and attention along those lines only.
//
// A block is some rows in a row of one stream. Its lines, for each query head: columns (a token, seen by all its rows) and
// bands (the pages at one distance from the page that a row lies on: the slashes of that width).
#pragma once
#include "ops.hpp"

namespace diastole {

// Sums over the rows of a stream and the heads of a key/value head of softmax weights: out (streams, kv heads, n).
void masses(const Kernels& isa, const Look& look, const std::vector<Span>& streams, const int32_t* tables, ptrdiff_t table_stride,
            float* out, int n);

// Which lines, found and kept in arrays of a width for each block and query head.
struct Lines {
  const int32_t* first;  // (blocks,) the block's first position; columns lie before it
  uint8_t* bands;        // (blocks, heads, reach) 1: chosen, by distance in pages
  int32_t* columns;      // (blocks, heads, width) in order
  int32_t* counts;       // (blocks, heads)
  float* covered;        // (blocks, heads) share of the rows' weight that lies on them
  int reach, width;
};

// Adds lines, the one with most weight per token first and what lies on chosen ones not counted again, until they cover
// `share`. Band 0 and the first `sink` columns are always in. streams: the rows of each block to judge by.
void choose_lines(const Kernels& isa, const Look& look, const std::vector<Span>& streams, const int32_t* tables, ptrdiff_t table_stride,
                  float share, int sink, const Lines& lines);

// Rows of blocks attend to their lines.
void attend_lines(const Kernels& isa, const Look& look, const std::vector<Span>& blocks, const int32_t* tables, ptrdiff_t table_stride,
                  const Lines& lines, float* out, float* lse);

}  // namespace diastole
