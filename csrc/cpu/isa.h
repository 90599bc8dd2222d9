// Instruction sets. A kernel is written once as a forced-inline template; for each instruction set
// one source file wraps it in functions that carry BLL_ISA_TARGET, and the set is chosen at run
// time. Such a file reads:
//
//   #include "cpu/isa.h"
//   #define BLL_ISA avx2
//   #define BLL_ISA_TARGET BLL_TARGET_AVX2
//   #include "cpu/NAME_table.inc"   // defines namespace bll::cpu::BLL_ISA
//
// The wrappers live in a namespace of their own, so that the linker never merges two sets.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define BLL_X86_TARGETS 1
#define BLL_TARGET_AVX2 __attribute__((target("arch=x86-64-v3")))
#define BLL_TARGET_AVX512 __attribute__((target("arch=x86-64-v4,prefer-vector-width=512")))
#else
#define BLL_X86_TARGETS 0
#endif
#define BLL_TARGET_PORTABLE

namespace bll::cpu {

enum class Isa : int { kPortable, kAvx2, kAvx512 };

// The best set this processor runs, or the one select_isa (cpu/api.h) named.
Isa current_isa();

}  // namespace bll::cpu
