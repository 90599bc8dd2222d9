#include "cpu/isa.h"

#if BLL_X86_TARGETS
#define BLL_ISA avx2
#define BLL_ISA_TARGET BLL_TARGET_AVX2
#define BLL_VECTOR_BYTES 32
#define BLL_DOT_ROWS 4
#define BLL_DOT_CLASSES 2
#define BLL_SUM_VECTORS 2
#define BLL_SUM_ROWS 6
#include "cpu/gram_table.inc"
#endif
