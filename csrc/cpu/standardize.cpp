#include "cpu/standardize.h"

#include <algorithm>

namespace bll::cpu {

namespace {

const StandardizeTable& standardize_table() {
#if BLL_X86_TARGETS
  if (current_isa() == Isa::kAvx512) return avx512::kStandardizeTable;
  if (current_isa() == Isa::kAvx2) return avx2::kStandardizeTable;
#endif
  return portable::kStandardizeTable;
}

// Enough numbers per piece to pay for waking a thread, and whole cache lines of every row.
int64_t grain(const StandardizeArgs& args) {
  const int64_t cells = std::max<int64_t>(args.cells, 1);
  const int64_t channel = std::max<int64_t>(args.rows * cells, 1);
  return std::max<int64_t>({32768 / channel, 32 / cells, 1});
}

struct Call {
  const StandardizeArgs& args;
  void (*loop)(const StandardizeArgs& args, int64_t begin, int64_t end);
};

void run(const StandardizeArgs& args, ParallelFor parallel_for,
         void (*loop)(const StandardizeArgs&, int64_t, int64_t)) {
  Call call{args, loop};
  parallel_for(
      args.channels, grain(args),
      [](int64_t begin, int64_t end, void* context) {
        const Call& call = *static_cast<const Call*>(context);
        call.loop(call.args, begin, end);
      },
      &call);
}

}  // namespace

void standardize_forward(const StandardizeArgs& args, ParallelFor parallel_for) {
  run(args, parallel_for, standardize_table().forward);
}

void standardize_backward(const StandardizeArgs& args, ParallelFor parallel_for) {
  run(args, parallel_for, standardize_table().backward);
}

}  // namespace bll::cpu
