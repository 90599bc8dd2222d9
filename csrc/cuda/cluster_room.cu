// How many clusters of a long group's blocks a device has room for.
#include "cuda/cluster.h"
#include "cuda/groups.h"

#if !defined(BLL_HOST_EMULATOR)

namespace bll::cuda {
namespace {

// In place of the kernels of long groups, whose blocks and bounds these are: what else decides how
// many of them a multiprocessor has is shared memory.
__global__ void __launch_bounds__(kLongBlock, 2) cluster_room_kernel() {}

// None where the device cannot tell: a group then has one block, which needs no cluster.
int ask(int cluster, int64_t shared) {
  const ClusterLaunch launch(static_cast<unsigned>(cluster), kLongBlock, cluster,
                             static_cast<size_t>(shared), nullptr);
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, cluster_room_kernel, &launch.config) ==
      cudaSuccess) {
    return clusters;
  }
  cudaGetLastError();  // an answer, and nobody's failure
  return 0;
}

}  // namespace

void find_clusters(Device& device) {
  const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
  const auto most = static_cast<int>(long_shared(device, 1));
  if (cudaFuncSetAttribute(cluster_room_kernel, limit, most) != cudaSuccess) cudaGetLastError();
  device.cluster = 1;
  for (int i = 0; i < kClusterSizes; ++i) {
    const int cluster = 2 << i;
    for (int blocks = 1; blocks <= 2; ++blocks) {
      device.clusters[blocks - 1][i] = ask(cluster, long_shared(device, blocks));
    }
    if (device.clusters[0][i] > 0) device.cluster = cluster;
  }
}

}  // namespace bll::cuda

#endif
