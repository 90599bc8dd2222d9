#include "cpu/pool.h"

#include <algorithm>

#include "cpu/pool_pixels.h"
#include "cpu/pool_rows.h"

namespace bll::cpu {

namespace {

const PoolTable& pool_table() {
#if BLL_X86_TARGETS
  if (current_isa() == Isa::kAvx512) return avx512::kPoolTable;
  if (current_isa() == Isa::kAvx2) return avx2::kPoolTable;
#endif
  return portable::kPoolTable;
}

int64_t work_items(const PoolArgs& args) {
  if (!args.channels_last) return args.batch * args.channels;
  if (takes_rows(args)) return args.batch;
  return args.batch * ((args.channels + kChannelTile - 1) / kChannelTile);
}

// Enough pixels per piece to pay for waking a thread.
int64_t grain(const PoolArgs& args) {
  const int64_t pixels = args.batch * args.channels * args.height * args.width;
  const int64_t item = std::max<int64_t>(pixels / std::max<int64_t>(work_items(args), 1), 1);
  return std::max<int64_t>(32768 / item, 1);
}

struct Call {
  const PoolArgs& args;
  void (*loop)(const PoolArgs& args, int64_t begin, int64_t end);
};

void run(const PoolArgs& args, ParallelFor parallel_for,
         void (*loop)(const PoolArgs&, int64_t, int64_t)) {
  Call call{args, loop};
  parallel_for(
      work_items(args), grain(args),
      [](int64_t begin, int64_t end, void* context) {
        const Call& call = *static_cast<const Call*>(context);
        call.loop(call.args, begin, end);
      },
      &call);
}

}  // namespace

void grid_pool_forward(const PoolArgs& args, ParallelFor parallel_for) {
  run(args, parallel_for, pool_table().forward);
}

void grid_pool_backward(const PoolArgs& args, ParallelFor parallel_for) {
  run(args, parallel_for, pool_table().backward);
}

}  // namespace bll::cpu
