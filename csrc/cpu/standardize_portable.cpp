#include "cpu/isa.h"

#define BLL_ISA portable
#define BLL_ISA_TARGET BLL_TARGET_PORTABLE
#include "cpu/standardize_table.inc"
