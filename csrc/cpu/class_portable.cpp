#include "cpu/isa.h"

#define BLL_ISA portable
#define BLL_ISA_TARGET BLL_TARGET_PORTABLE
#define BLL_VECTOR_BYTES 16
#define BLL_DOT_ROWS 4
#define BLL_DOT_CLASSES 2
#define BLL_SUM_VECTORS 2
#define BLL_SUM_ROWS 4
#define BLL_TURNED_VECTORS 4
#define BLL_SUMS 8
#include "cpu/class_table.inc"
