// The pooling loops of every instruction set, and the choice among them.
#pragma once

#include "cpu/api.h"
#include "cpu/isa.h"

namespace bll::cpu {

// Work items: planes of a channels-first map, tiles of channels of an image of a channels-last one,
// or its images where takes_rows (cpu/pool_rows.h) says so.
struct PoolTable {
  void (*forward)(const PoolArgs& args, int64_t begin, int64_t end);
  void (*backward)(const PoolArgs& args, int64_t begin, int64_t end);
};

namespace portable {
extern const PoolTable kPoolTable;
}
#if BLL_X86_TARGETS
namespace avx2 {
extern const PoolTable kPoolTable;
}
namespace avx512 {
extern const PoolTable kPoolTable;
}
#endif

}  // namespace bll::cpu
