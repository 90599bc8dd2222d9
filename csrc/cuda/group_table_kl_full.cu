#include "cuda/group_table.cuh"

namespace bll::cuda {

template void run_group_table_of<Loss::kKlFull>(const FamilyArgs&, int, bool, const GroupTableView&,
                                                int64_t, cudaStream_t);

}  // namespace bll::cuda
