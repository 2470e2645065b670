#define ISA_NAME "avx512"
#define ISA_TABLE kernels_avx512
#include "isa.inl"
