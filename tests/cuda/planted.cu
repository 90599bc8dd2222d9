// Kernels with one planted mistake each, and one without: what the emulator must and must not say.
#include "cuda/block.h"

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
  void (*const kernels[])(const float*, float*) = {
      run<kNone>,  run<kNoBarrier>,       run<kOverrun>,
      run<kUnset>, run<kShuffleInBranch>, run<kBarrierInBranch>,
      run<kOdd>};
  try {
    kernels[mistake](in, out);
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}
