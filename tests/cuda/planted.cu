// Kernels with one planted mistake each, and one without: what the emulator must and must not say.
#include "cuda/block.h"
#include "cuda/cluster.h"

namespace {

using bll::cuda::kAllLanes;

constexpr int kBlock = 64;

enum Mistake { kNone, kNoBarrier, kOverrun, kUnset, kShuffleInBranch, kBarrierInBranch, kOdd };

template <int mistake>
__global__ void reverse_and_sum(const float* in, float* out) {
  BLL_SHARED(float, values, kBlock);
  BLL_SHARED(float, warps, kBlock / 32);
  const int at = static_cast<int>(threadIdx.x);
  if (mistake != kUnset || at != 5) values[at] = in[at];
  if (mistake == kOverrun && at == 0) values[kBlock] = 1;
  if (mistake == kBarrierInBranch && at < 32) __syncthreads();
  if (mistake != kNoBarrier) __syncthreads();
  float x = values[kBlock - 1 - at];
  if (mistake == kShuffleInBranch && at < 8) x += __shfl_xor_sync(kAllLanes, x, 1) * 0;
  if (mistake == kOdd) BLL_CHECK_ALIGNED(in + 1);
  x = bll::cuda::block_sum(x * static_cast<float>(at), warps);
  if (at == 0) out[0] = x;
}

// The same sum by two blocks of 64 threads that hold half of the numbers each.
enum ClusterMistake { kSound, kNoWait, kNoClusterBarrier, kLeft, kBeyondLimit };

template <int mistake>
__global__ void sum_by_cluster(const float* in, float* out) {
  BLL_SHARED(float, warps, kBlock / 32);
  BLL_SHARED(float, totals, 2);
  BLL_DYNAMIC_SHARED(staged);
  float* kept = reinterpret_cast<float*>(staged);
  const int at = static_cast<int>(threadIdx.x), rank = static_cast<int>(blockIdx.x);
  if (at < 8) BLL_COPY_ASYNC(kept + 4 * at, in + 32 * rank + 4 * at);
  if (mistake != kNoWait || at != 3) BLL_COPY_WAIT();
  __syncthreads();
  const int number = 32 * rank + at;
  float x = at < 32 ? kept[at] * static_cast<float>(63 - number) : 0.0f;
  x = bll::cuda::block_sum(x, warps);
  if (mistake == kNoWait && at == 3) BLL_COPY_WAIT();
  if (at == 0) totals[0] = x;
  if (mistake == kLeft && rank == 1) return;
  if (mistake != kNoClusterBarrier) BLL_CLUSTER_SYNC();
  if (rank == 0 && at == 0) out[0] = x + *BLL_OF_BLOCK(totals, 1);
  BLL_CLUSTER_SYNC();
}

template <int mistake>
void run_cluster(const float* in, float* out) {
  constexpr size_t limit = mistake == kBeyondLimit ? 64 : 128;
  BLL_LAUNCH_CLUSTER((sum_by_cluster<mistake>), 2, kBlock, 2, 128, limit, nullptr, in, out);
}

template <int mistake>
void run(const float* in, float* out) {
  BLL_LAUNCH(reverse_and_sum<mistake>, 1, kBlock, nullptr, in, out);
}

}  // namespace

// The sum of in[63 - i] * i over 64 numbers; a message where the emulator found something wrong.
extern "C" __attribute__((visibility("default"))) const char* bll_planted(int mistake, int order,
                                                                          const float* in,
                                                                          float* out) {
  static std::string message;
  bll_emulator::Machine::get().order = order;
  void (*const kernels[])(const float*, float*) = {run<kNone>,
                                                   run<kNoBarrier>,
                                                   run<kOverrun>,
                                                   run<kUnset>,
                                                   run<kShuffleInBranch>,
                                                   run<kBarrierInBranch>,
                                                   run<kOdd>,
                                                   run_cluster<kSound>,
                                                   run_cluster<kNoWait>,
                                                   run_cluster<kNoClusterBarrier>,
                                                   run_cluster<kLeft>,
                                                   run_cluster<kBeyondLimit>};
  try {
    kernels[mistake](in, out);
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}
