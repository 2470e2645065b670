#define ISA_NAME "scalar"
#define ISA_TABLE kernels_scalar
#include "isa.inl"
