// How many clusters of a long group's blocks a device has room for.
#include "cuda/cluster.h"
#include "cuda/groups.h"

#if !defined(BLL_HOST_EMULATOR)

namespace bll::cuda {
namespace {

// In place of the kernels of long groups, whose blocks and bounds these are: what else decides how
// many of them a multiprocessor has is shared memory.
__global__ void __launch_bounds__(kLongBlock, 2) cluster_room_kernel() {}

cudaError_t ask(int cluster, int64_t shared, int& clusters) {
  const ClusterLaunch launch(static_cast<unsigned>(cluster), kLongBlock, cluster,
                             static_cast<size_t>(shared), nullptr);
  const cudaError_t error =
      cudaOccupancyMaxActiveClusters(&clusters, cluster_room_kernel, &launch.config);
  if (error != cudaErrorInvalidClusterSize) return error;
  clusters = 0;
  cudaGetLastError();  // an answer, not a failure
  return cudaSuccess;
}

}  // namespace

cudaError_t find_clusters(Device& device) {
  const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
  const auto most = static_cast<int>(long_shared(device, 1));
  cudaError_t error = cudaFuncSetAttribute(cluster_room_kernel, limit, most);
  device.cluster = 1;
  for (int i = 0; i < kClusterSizes && error == cudaSuccess; ++i) {
    const int cluster = 2 << i;
    for (int blocks = 1; blocks <= 2 && error == cudaSuccess; ++blocks) {
      error = ask(cluster, long_shared(device, blocks), device.clusters[blocks - 1][i]);
    }
    if (error == cudaSuccess && device.clusters[0][i] > 0) device.cluster = cluster;
  }
  return error;
}

}  // namespace bll::cuda

#endif
