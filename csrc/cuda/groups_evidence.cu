#include "cuda/pair_groups.cuh"

namespace bll::cuda {

template void run_groups_of<Loss::kEvidence>(const FamilyArgs&, int, bool, const GroupView&, int,
                                             cudaStream_t);

}  // namespace bll::cuda
