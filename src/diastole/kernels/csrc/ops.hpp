// The operators: kernels spread over threads. Arguments have been checked by the caller.
#pragma once
#include <vector>

#include "kernels.hpp"
#include "schedule.hpp"

namespace diastole {

constexpr size_t kRoom = (size_t{32} << 20) / sizeof(Partial);  // rows of partial results that attention keeps at most
constexpr double kAlone = 40e3;  // multiply-adds below which waking others costs more than it brings

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

struct Span {  // rows of one stream
  int t0, t1;
};

struct Pages {  // one layer's cache
  uint8_t* data;
  KV kind;
  int heads, dim;
  size_t bytes;  // of one head's page
  uint8_t* at(int64_t row, int head) const {
    return data + (static_cast<size_t>(row / kPage) * heads + static_cast<size_t>(head)) * bytes;
  }
};

// Row-wise operators over t rows; strides are of rows.
void rmsnorm(const Kernels& isa, const float* x, ptrdiff_t x_stride, const float* weight, float eps, float* out,
             ptrdiff_t out_stride, int t, int heads, int k);
void rope(const Kernels& isa, float* x, ptrdiff_t stride, const int32_t* pos, const float* table, int t, int heads,
          int dim, int rotated);
void gated(const Kernels& isa, const float* gu, ptrdiff_t gu_stride, bool gelu, float* out, ptrdiff_t out_stride, int t,
           int n);
// Pictures of h x w pixels with c channels each; strides of pictures, lines and pixels.
template <class T>
struct Pictures {
  T* data;
  ptrdiff_t picture, line, pixel;
  T* at(int b, int y) const { return data + b * picture + y * line; }
};
struct GroupNorm {
  int b, h, w, c, groups;
  const float *weight, *bias, *add;  // (c,), (c,), (b, c) or null
  float eps;
  bool silu;
};
void groupnorm(const Kernels& isa, const GroupNorm& how, const Pictures<const float>& x, const Pictures<float>& out);
void kv_write(const Kernels& isa, const Pages& pages, const int64_t* rows, int t, const float* k, ptrdiff_t k_stride,
              const float* v, ptrdiff_t v_stride);

void linear(const Kernels& isa, const Matrix& w, const float* x, ptrdiff_t x_stride, int t, const Out& out);
void embed(const Kernels& isa, const Matrix& w, const int32_t* ids, int t, float* out, ptrdiff_t stride);
// out (t, heads, dim); lse (t, heads) or null. table: (streams, table_stride).
void attend(const Kernels& isa, const Look& look, const std::vector<Span>& streams, const int32_t* tables,
            ptrdiff_t table_stride, float* out, float* lse);
// The same by a schedule of the caller's choice. spent: what each worker did, or null.
struct Spent {
  double seconds, merging;  // all of its time, and that of merging
  double splits;
};
void attend(const Kernels& isa, const Look& look, const std::vector<Span>& streams, const int32_t* tables,
            ptrdiff_t table_stride, const Schedule& how, float* out, float* lse, Spent* spent);

// False: a value does not fit its format.
bool pack_q4(Weight kind, const uint8_t* q, const float* d, const float* m, int n, int k, uint8_t* out);  // q4 or q4s
bool pack_q4b(const uint8_t* q, const uint8_t* both, const float* scales, int n, int k, uint8_t* out);  // a and b; s and z
bool pack_q8(const int8_t* q, const float* d, int n, int k, uint8_t* out);
void pack_bf16(const float* w, int n, int k, uint8_t* out);
void pack_f32(const float* w, int n, int k, uint8_t* out);
size_t packed_bytes(Weight kind, int n, int k);

}  // namespace diastole
