// Kernels with one planted fault each, and some without: what a sanitizer must find, and must not.
// A check that finds nothing here finds nothing anywhere.
//   nvcc -arch=sm_90 -o faulty faulty.cu && compute-sanitizer --tool memcheck ./faulty bounds
#include <cstdio>
#include <cstring>

namespace bll::cuda {
namespace {

// Far behind the end of what was allocated.
__global__ void bounds(float* x) { x[threadIdx.x + (size_t{1} << 28)] = 1; }

// Other warps' numbers, without a barrier in between.
__global__ void race(float* x) {
  __shared__ float shared[256];
  shared[threadIdx.x] = x[threadIdx.x];
  x[threadIdx.x] = shared[255 - threadIdx.x];
}

// A barrier that half of the threads of every warp never reach.
__global__ void barrier(float* x) {
  if (threadIdx.x % 2 == 0) __syncthreads();
  x[threadIdx.x] = 1;
}

// Memory that nobody has written, or that somebody has.
__global__ void reads(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x] + 1; }

__global__ void writes(float* x) { x[threadIdx.x] = 1; }

}  // namespace
}  // namespace bll::cuda

// Kernels that a filter by name takes for those of another library.
namespace at::native {

__global__ void reads(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x] + 1; }

__global__ void writes(float* x) { x[threadIdx.x] = 1; }

}  // namespace at::native

int main(int count, char** words) {
  if (count != 2) return 2;
  const auto asked = [&](const char* name) { return std::strcmp(words[1], name) == 0; };
  float *x = nullptr, *y = nullptr;
  if (cudaMalloc(&x, 1024) != cudaSuccess || cudaMalloc(&y, 1024) != cudaSuccess) {
    std::puts(cudaGetErrorString(cudaGetLastError()));
    return 3;
  }
  if (asked("clean") || asked("written")) bll::cuda::writes<<<1, 256>>>(x);
  if (asked("foreign-written")) at::native::writes<<<1, 256>>>(x);
  if (asked("bounds")) bll::cuda::bounds<<<1, 256>>>(x);
  if (asked("race")) cudaMemset(x, 0, 1024), bll::cuda::race<<<1, 256>>>(x);
  if (asked("barrier")) bll::cuda::barrier<<<1, 256>>>(x);
  if (asked("unset") || asked("written") || asked("foreign-written")) {
    bll::cuda::reads<<<1, 256>>>(x, y);
  }
  if (asked("foreign-unset")) at::native::reads<<<1, 256>>>(x, y);
  const cudaError_t found = cudaDeviceSynchronize();
  std::printf("%s: %s\n", words[1], cudaGetErrorString(found));
  return 0;
}
