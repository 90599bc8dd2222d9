// The loops of standardised channels of every instruction set, and the choice among them.
#pragma once

#include "cpu/api.h"
#include "cpu/isa.h"

namespace bll::cpu {

// Work items: channels.
struct StandardizeTable {
  void (*forward)(const StandardizeArgs& args, int64_t begin, int64_t end);
  void (*backward)(const StandardizeArgs& args, int64_t begin, int64_t end);
};

namespace portable {
extern const StandardizeTable kStandardizeTable;
}
#if BLL_X86_TARGETS
namespace avx2 {
extern const StandardizeTable kStandardizeTable;
}
namespace avx512 {
extern const StandardizeTable kStandardizeTable;
}
#endif

}  // namespace bll::cpu
