// Attention to a few chunks of a prompt whose keys are kept in low rank: choosing and rebuilding them.
#pragma once
#include "ops.hpp"

namespace diastole {

constexpr int kChunk = 8;                        // tokens that share a landmark
constexpr int kChunksOfPage = kPage / kChunk;

// One layer's state; see kernels/table.py, Shadows.
struct Shadows {
  const uint16_t* marks;      // (sealed pages, kv heads, 8, dim) bf16
  const int16_t* a;           // (sealed pages, 64, rank)
  const uint8_t* values;      // (sealed pages, kv heads, 64, dim) bf16
  const float *basis, *rope;  // (records, rank, kv heads * dim); (positions, rotated)
  const int32_t* outliers;    // (records, kv heads, outlying)
  uint8_t* pages;             // of KV::rows
  int32_t* held;              // (buffers, kv heads, chunks)
  size_t page_bytes;
  int dim, kv_heads, group, rank, rotated, outlying, chunks, first;
};

// The rows that look, each with its stream's sealed pages.
struct Shadowed {
  const int32_t *which, *tables, *pages, *records, *buffers;  // tables (r, width)
  int r, width;
};

// at (r, kv heads, room): the chosen chunks' tokens, before what is there from place 8 * chunks on.
void recall(const Kernels& isa, const Shadows& state, const Shadowed& rows, const float* q, ptrdiff_t q_stride, float scale,
            int64_t* at, int room, int32_t* missed);

}  // namespace diastole
