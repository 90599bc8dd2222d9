#include "cpu/isa.h"

#if BLL_X86_TARGETS
#define BLL_ISA avx512
#define BLL_ISA_TARGET BLL_TARGET_AVX512
#include "cpu/standardize_table.inc"
#endif
