#define ISA_NAME "avx2"
#define ISA_TABLE kernels_avx2
#include "isa.inl"
