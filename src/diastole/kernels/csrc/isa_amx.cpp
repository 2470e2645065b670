#define ISA_NAME "amx"
#define ISA_TABLE kernels_amx
#include "isa.inl"
