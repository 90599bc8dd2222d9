// Blocks of a cluster: their launch, their barrier and each other's shared memory; and copies into
// shared memory that a thread waits for later. Not yet shown on a GPU.
#pragma once

#include "cuda/launch.h"

#if defined(__CUDACC__) && !defined(BLL_HOST_EMULATOR)
#include <cooperative_groups.h>
#include <cuda_pipeline_primitives.h>

// 16 bytes from global memory; the thread itself may read them after BLL_COPY_WAIT.
#define BLL_COPY_ASYNC(to, from) __pipeline_memcpy_async((to), (from), 16)
// The clobber keeps the compiler from reading them before the wait: the toolkit's own is ordered
// with other volatile assembly only, and a thread that reads its own bytes needs no barrier.
#define BLL_COPY_WAIT() asm volatile("cp.async.wait_all;" ::: "memory")
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define BLL_CLUSTER_SYNC() cooperative_groups::this_cluster().sync()
// The same place in the shared memory of a block of the cluster, which must not have left.
#define BLL_OF_BLOCK(pointer, rank) \
  cooperative_groups::this_cluster().map_shared_rank((pointer), static_cast<unsigned>(rank))
#else
// Without clusters, launch tables make none of more than one block, which never asks.
#define BLL_CLUSTER_SYNC() __syncthreads()
#define BLL_OF_BLOCK(pointer, rank) (static_cast<void>(rank), (pointer))
#endif
#define BLL_LAUNCH_CLUSTER(kernel, ...) bll::cuda::launch_cluster(kernel, __VA_ARGS__)

namespace bll::cuda {

// How the blocks of clusters are launched, each with `shared` bytes of dynamic shared memory.
struct ClusterLaunch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute size{};

  ClusterLaunch(unsigned blocks, int threads, int cluster, size_t shared, cudaStream_t stream) {
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim.x = static_cast<unsigned>(cluster);
    size.val.clusterDim.y = size.val.clusterDim.z = 1;
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &size;
    config.numAttrs = cluster > 1 ? 1 : 0;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;  // `config` points into it
  ClusterLaunch& operator=(const ClusterLaunch&) = delete;
};

// `most`: bytes of dynamic shared memory that any launch of the kernel on this device may ask for.
// The limit is the function's, and other threads of the host launch it too: one that is the same
// every time is never too low for any of them. What fails is the last error that the runtime
// reports.
template <class... Parameters, class... Arguments>
void launch_cluster(void (*kernel)(Parameters...), unsigned blocks, int threads, int cluster,
                    size_t shared, size_t most, cudaStream_t stream,
                    const Arguments&... arguments) {
  const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
  if (cudaFuncSetAttribute(kernel, limit, static_cast<int>(most)) != cudaSuccess) return;
  const ClusterLaunch launch(blocks, threads, cluster, shared, stream);
  cudaLaunchKernelEx(&launch.config, kernel, arguments...);
}

}  // namespace bll::cuda
#endif

namespace bll::cuda {

inline constexpr int kClusterBlocks = 8;  // most of a cluster that may be asked for anywhere

}  // namespace bll::cuda
