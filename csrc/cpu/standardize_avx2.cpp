#include "cpu/isa.h"

#if BLL_X86_TARGETS
#define BLL_ISA avx2
#define BLL_ISA_TARGET BLL_TARGET_AVX2
#include "cpu/standardize_table.inc"
#endif
