// CUDA C++ on the host, for its numbers: what nvcc would provide, on the machine beside this file.
#pragma once

#include "emulator_machine.h"

namespace bll_emulator {

inline void check_aligned(const void* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) Machine::fail("16 bytes at an odd address");
}

inline void check_shared(size_t asked, size_t most) {
  if (asked > most) Machine::fail("more shared memory than the kernel's limit");
}

template <class T>
T counted_load(const T* from) {
  Machine::get().counts.loaded += sizeof(T);
  return *from;
}

inline void counted_copy(void* to, const void* from) {
  check_aligned(to);
  check_aligned(from);
  Machine::get().counts.loaded += 16;
  Machine::get().copy_async(to, from);
}

template <class T>
T* of_block(T* pointer, int rank) {
  return static_cast<T*>(Machine::get().of_block(pointer, rank));
}

// Whether the predicate holds in any lane of a whole warp.
inline bool any_lane(uint32_t mask, bool predicate, const char* where) {
  const int lane = static_cast<int>(Machine::get().thread_index().x % 32);
  for (int step = 1; step < 32; step *= 2) {
    predicate |= Machine::get().exchange(mask, predicate, lane ^ step, where);
  }
  return predicate;
}

// One thread runs at a time, so every operation is atomic.
template <class T>
T atomic_add(T* at, T x) {
  const T before = *at;
  *at += x;
  return before;
}

}  // namespace bll_emulator

#define atomicAdd(pointer, value) bll_emulator::atomic_add(pointer, value)
#define __threadfence() static_cast<void>(0)
#define BLL_EMULATOR_TEXT_OF(x) #x
#define BLL_EMULATOR_TEXT(x) BLL_EMULATOR_TEXT_OF(x)
#define BLL_EMULATOR_HERE __FILE__ ":" BLL_EMULATOR_TEXT(__LINE__)

#define BLL_SHARED(type, name, count) \
  static const char name##_key = 0;   \
  type* const name =                  \
      static_cast<type*>(bll_emulator::Machine::get().shared(&name##_key, sizeof(type) * (count)))
#define BLL_DYNAMIC_SHARED(name) \
  unsigned char* const name =    \
      static_cast<unsigned char*>(bll_emulator::Machine::get().dynamic_shared())
#define BLL_LAUNCH(kernel, grid, block, stream, ...) \
  (static_cast<void>(stream),                        \
   bll_emulator::Machine::get().launch({dim3(grid), dim3(block)}, [=] { kernel(__VA_ARGS__); }))
#define BLL_LAUNCH_CLUSTER(kernel, grid, block, cluster, shared, most, stream, ...) \
  (static_cast<void>(stream), bll_emulator::check_shared(shared, most),             \
   bll_emulator::Machine::get().launch({dim3(grid), dim3(block), cluster, shared},  \
                                       [=] { kernel(__VA_ARGS__); }))
#define BLL_CHECK_ALIGNED(pointer) bll_emulator::check_aligned(pointer)
#define BLL_COPY_ASYNC(to, from) bll_emulator::counted_copy(to, from)
#define BLL_COPY_WAIT() bll_emulator::Machine::get().wait_for_copies()
#define BLL_CLUSTER_SYNC() bll_emulator::Machine::get().cluster_barrier(BLL_EMULATOR_HERE)
#define BLL_OF_BLOCK(pointer, rank) bll_emulator::of_block(pointer, rank)

#define threadIdx (bll_emulator::Machine::get().thread_index())
#define blockIdx (bll_emulator::Machine::get().block_index())
#define blockDim (bll_emulator::Machine::get().shape.block)
#define gridDim (bll_emulator::Machine::get().shape.grid)
#define __syncthreads() bll_emulator::Machine::get().block_barrier(BLL_EMULATOR_HERE)
#define __syncwarp() bll_emulator::Machine::get().warp_barrier(~0u, BLL_EMULATOR_HERE)
#define __shfl_sync(mask, value, source) \
  bll_emulator::Machine::get().exchange(mask, value, source, BLL_EMULATOR_HERE)
#define __shfl_xor_sync(mask, value, lanes)                                      \
  bll_emulator::Machine::get().exchange(                                         \
      mask, value, static_cast<int>(threadIdx.x % 32) ^ static_cast<int>(lanes), \
      BLL_EMULATOR_HERE)
#define __any_sync(mask, predicate) bll_emulator::any_lane(mask, predicate, BLL_EMULATOR_HERE)
#define __ldg(pointer) bll_emulator::counted_load(pointer)
#define BLL_LOAD(pointer) bll_emulator::counted_load(pointer)

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline

#define cudaMemsetAsync(memory, value, bytes, stream) \
  (std::memset(memory, value, bytes), static_cast<void>(stream), cudaSuccess)
#undef cudaGetLastError
#define cudaGetLastError() cudaSuccess
