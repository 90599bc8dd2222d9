#include "cpu/isa.h"

#if BLL_X86_TARGETS
#define BLL_ISA avx2
#define BLL_ISA_TARGET BLL_TARGET_AVX2
#define BLL_VECTOR_BYTES 32
#define BLL_DOT_ROWS 4
#define BLL_DOT_CLASSES 2
#define BLL_SUM_VECTORS 2
#define BLL_SUM_ROWS 6
#define BLL_TURNED_VECTORS 2
#define BLL_SUMS 12
#include "cpu/class_table.inc"
#endif
