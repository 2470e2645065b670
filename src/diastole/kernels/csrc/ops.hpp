// The operators: kernels spread over threads. Arguments have been checked by the caller.
#pragma once
#include <vector>

#include "kernels.hpp"

namespace diastole {

struct Span {  // rows of one stream
  int t0, t1;
};

void linear(const Kernels& isa, const Matrix& w, const float* x, ptrdiff_t x_stride, int t, const Out& out);
void embed(const Kernels& isa, const Matrix& w, const int32_t* ids, int t, float* out, ptrdiff_t stride);
// out (t, heads, dim); lse (t, heads) or null. table: (streams, table_stride).
void attend(const Kernels& isa, const Look& look, const std::vector<Span>& streams, const int32_t* tables,
            ptrdiff_t table_stride, float* out, float* lse);

void pack_q4(const uint8_t* q, const float* d, const float* m, int n, int k, uint8_t* out);
void pack_q8(const int8_t* q, const float* d, int n, int k, uint8_t* out);
void pack_bf16(const float* w, int n, int k, uint8_t* out);
void pack_f32(const float* w, int n, int k, uint8_t* out);
size_t packed_bytes(Weight kind, int n, int k);

}  // namespace diastole
