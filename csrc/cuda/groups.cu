#include "cuda/group_table.cuh"
#include "cuda/groups.h"
#include "cuda/pair_groups.cuh"

namespace bll::cuda {

// One per file: groups_<loss>.cu.
extern template void run_groups_of<Loss::kKl>(const FamilyArgs&, int, bool, const GroupView&, int,
                                              cudaStream_t);
extern template void run_groups_of<Loss::kKlFull>(const FamilyArgs&, int, bool, const GroupView&,
                                                  int, cudaStream_t);
extern template void run_groups_of<Loss::kReverseKl>(const FamilyArgs&, int, bool, const GroupView&,
                                                     int, cudaStream_t);
extern template void run_groups_of<Loss::kReverseKlFull>(const FamilyArgs&, int, bool,
                                                         const GroupView&, int, cudaStream_t);
extern template void run_groups_of<Loss::kEvidence>(const FamilyArgs&, int, bool, const GroupView&,
                                                    int, cudaStream_t);

// And group_table_<loss>.cu.
extern template void run_group_table_of<Loss::kKlFull>(const FamilyArgs&, int, bool,
                                                       const GroupTableView&, int64_t,
                                                       cudaStream_t);
extern template void run_group_table_of<Loss::kReverseKlFull>(const FamilyArgs&, int, bool,
                                                              const GroupTableView&, int64_t,
                                                              cudaStream_t);
extern template void run_group_table_of<Loss::kEvidence>(const FamilyArgs&, int, bool,
                                                         const GroupTableView&, int64_t,
                                                         cudaStream_t);

void run_groups(const FamilyArgs& family, Loss loss, int tier, bool wide, const GroupView& view,
                int blocks, cudaStream_t stream) {
  switch (loss) {
    case Loss::kKl:
      return run_groups_of<Loss::kKl>(family, tier, wide, view, blocks, stream);
    case Loss::kKlFull:
      return run_groups_of<Loss::kKlFull>(family, tier, wide, view, blocks, stream);
    case Loss::kReverseKl:
      return run_groups_of<Loss::kReverseKl>(family, tier, wide, view, blocks, stream);
    case Loss::kReverseKlFull:
      return run_groups_of<Loss::kReverseKlFull>(family, tier, wide, view, blocks, stream);
    case Loss::kEvidence:
      return run_groups_of<Loss::kEvidence>(family, tier, wide, view, blocks, stream);
  }
}

// Losses that do not reach the message have no table gradient.
void run_group_table(const FamilyArgs& family, Loss loss, int tier, bool wide,
                     const GroupTableView& view, int64_t blocks, cudaStream_t stream) {
  switch (loss) {
    case Loss::kKl:
    case Loss::kReverseKl:
      return;
    case Loss::kKlFull:
      return run_group_table_of<Loss::kKlFull>(family, tier, wide, view, blocks, stream);
    case Loss::kReverseKlFull:
      return run_group_table_of<Loss::kReverseKlFull>(family, tier, wide, view, blocks, stream);
    case Loss::kEvidence:
      return run_group_table_of<Loss::kEvidence>(family, tier, wide, view, blocks, stream);
  }
}

}  // namespace bll::cuda
