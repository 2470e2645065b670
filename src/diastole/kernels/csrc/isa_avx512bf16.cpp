#define ISA_NAME "avx512bf16"
#define ISA_TABLE kernels_avx512bf16
#include "isa.inl"
