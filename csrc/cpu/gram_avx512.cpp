#include "cpu/isa.h"

#if BLL_X86_TARGETS
#define BLL_ISA avx512
#define BLL_ISA_TARGET BLL_TARGET_AVX512
#define BLL_VECTOR_BYTES 64
#define BLL_DOT_ROWS 4
#define BLL_DOT_CLASSES 4
#define BLL_SUM_VECTORS 4
#define BLL_SUM_ROWS 6
#include "cpu/gram_table.inc"
#endif
