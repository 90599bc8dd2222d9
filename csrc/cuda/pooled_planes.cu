#include "cuda/pooled_class.cuh"
#include "cuda/pooled_planes.cuh"

namespace bll::cuda {

void run_pooled_planes(const FamilyArgs& family, const PooledView& view, cudaStream_t stream) {
  const LinearScore score(family, view.rows.normalize);
  const unsigned images = static_cast<unsigned>(view.rows.rows);
  BLL_LAUNCH(pooled_class<PlaneCells>, images, kPooledThreads, stream, score, view);
}

}  // namespace bll::cuda
