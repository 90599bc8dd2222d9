// CUDA C++ on the host, for its numbers: a block's threads are fibers that run one at a time.
//
// A fiber runs until a barrier or a shuffle. Barriers open when all live threads of the block (or
// all lanes a shuffle names, at the same place) have come. The order of threads and blocks is
// forward, backward or shuffled. Shared memory is poisoned with NaN before each block and has guard
// zones. What the emulator finds wrong it throws. It knows no weak memory ordering, no rounding
// modes of the device's own instructions and no two blocks at a time.
#pragma once

#include <cuda_runtime.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace bll_emulator {

enum class State { kRun, kBlockBarrier, kWarpBarrier, kDone };

inline constexpr size_t kStack = 128 << 10, kGuard = 64;
inline constexpr int kLanes = 32;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::kDone;
  uint32_t mask = 0;
  const char* where = "";
  int number = 0;
};

struct Warp {
  uint64_t slots[2][kLanes];
};

struct Shared {
  std::unique_ptr<unsigned char[]> memory;
  size_t bytes;
};

// What a run was made of, for tests that count.
struct Counts {
  int64_t launches = 0, blocks = 0, barriers = 0, shuffles = 0, loaded = 0;
};

class Machine {
 public:
  dim3 grid, block;
  uint3 block_index{};
  int order = 0;  // 0 forward, 1 backward, else the seed of a shuffle
  Counts counts;

  static Machine& get() {
    static Machine machine;
    return machine;
  }

  uint3 thread_index() const {
    const unsigned n = static_cast<unsigned>(current_->number);
    return {n % block.x, n / block.x % block.y, n / (block.x * block.y)};
  }

  void launch(dim3 of_grid, dim3 of_block, std::function<void()> body) {
    grid = of_grid, block = of_block, body_ = std::move(body);
    const size_t threads = size_t{block.x} * block.y * block.z;
    const size_t blocks = size_t{grid.x} * grid.y * grid.z;
    if (threads == 0 || threads > 1024 || blocks == 0) fail("launch of an impossible shape");
    while (fibers_.size() < threads) fibers_.emplace_back();
    threads_ = static_cast<int>(threads);
    warps_.resize((threads + kLanes - 1) / kLanes);
    phase_.assign(threads, 0);
    shared_.clear();
    std::vector<size_t> turns(blocks);
    for (size_t i = 0; i < blocks; ++i) turns[i] = order == 1 ? blocks - 1 - i : i;
    std::mt19937 random(static_cast<unsigned>(order));
    if (order > 1) std::shuffle(turns.begin(), turns.end(), random);
    ++counts.launches;
    for (const size_t i : turns) run_block(static_cast<unsigned>(i), random);
  }

  void block_barrier(const char* where) { pause(State::kBlockBarrier, 0, where); }
  void warp_barrier(uint32_t mask, const char* where) { pause(State::kWarpBarrier, mask, where); }

  template <class T>
  T exchange(uint32_t mask, T value, int source, const char* where) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    const int number = current_->number, lane = number % kLanes;
    Warp& warp = warps_[number / kLanes];
    const int phase = phase_[number];
    phase_[number] ^= 1;  // two buffers in turn, so that one barrier each is enough
    std::memcpy(&warp.slots[phase][lane], &value, sizeof value);
    ++counts.shuffles;
    warp_barrier(mask, where);
    if (source < 0 || source >= kLanes || !(mask >> source & 1)) fail("shuffle from outside");
    T result;
    std::memcpy(&result, &warp.slots[phase][source], sizeof result);
    return result;
  }

  void* shared(const void* key, size_t bytes) {
    Shared& found = shared_[key];
    if (!found.memory) {
      found.bytes = bytes;
      found.memory.reset(new unsigned char[bytes + 2 * kGuard]);
      std::memset(found.memory.get(), 0xff, bytes + 2 * kGuard);
    }
    return found.memory.get() + kGuard;
  }

  [[noreturn]] static void fail(const std::string& message) {
    throw std::runtime_error("CUDA emulator: " + message);
  }

 private:
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<uint8_t> phase_;
  std::unordered_map<const void*, Shared> shared_;
  std::function<void()> body_;
  std::string error_;
  ucontext_t main_;
  Fiber* current_ = nullptr;
  int threads_ = 0;

  static void enter() {
    Machine& m = get();
    try {
      m.body_();
    } catch (const std::exception& error) {
      m.error_ = error.what();
    }
    m.current_->state = State::kDone;
    swapcontext(&m.current_->context, &m.main_);
  }

  void pause(State state, uint32_t mask, const char* where) {
    Fiber* fiber = current_;
    fiber->state = state, fiber->mask = mask, fiber->where = where;
    swapcontext(&fiber->context, &main_);
  }

  bool open_block_barrier() {
    int live = 0, waiting = 0;
    for (int i = 0; i < threads_; ++i) {
      live += fibers_[i].state != State::kDone;
      waiting += fibers_[i].state == State::kBlockBarrier;
    }
    if (live == 0 || waiting != live) return false;
    // Threads that have left do not count on a GPU either, but kernels here never rely on that.
    if (live != threads_) fail("__syncthreads after some threads have left");
    const char* where = fibers_[0].where;
    for (int i = 0; i < threads_; ++i) {
      if (fibers_[i].where != where) fail("threads wait at different __syncthreads");
      fibers_[i].state = State::kRun;
    }
    ++counts.barriers;
    return true;
  }

  bool open_warp_barriers() {
    bool any = false;
    for (int i = 0; i < threads_; ++i) {
      const Fiber& fiber = fibers_[i];
      if (fiber.state != State::kWarpBarrier) continue;
      const uint32_t mask = fiber.mask;
      const int first = i / kLanes * kLanes;
      if (!(mask >> (i - first) & 1)) fail("a lane outside its own mask");
      bool here = true;
      for (int k = 0; k < kLanes && here; ++k) {
        if (!(mask >> k & 1)) continue;
        here = first + k < threads_;
        if (!here) break;
        const Fiber& other = fibers_[first + k];
        here =
            other.state == State::kWarpBarrier && other.mask == mask && other.where == fiber.where;
      }
      if (!here) continue;
      for (int k = 0; k < kLanes; ++k) {
        if (mask >> k & 1) fibers_[first + k].state = State::kRun;
      }
      any = true;
    }
    return any;
  }

  [[noreturn]] void deadlock() const {
    std::string text = "deadlock in block " + std::to_string(block_index.x) + ":";
    int shown = 0;
    for (int i = 0; i < threads_ && shown < 6; ++i) {
      if (fibers_[i].state == State::kDone) continue;
      text += " t" + std::to_string(i) + "@" + fibers_[i].where;
      ++shown;
    }
    fail(text);
  }

  void start_fibers() {
    for (int i = 0; i < threads_; ++i) {
      Fiber& fiber = fibers_[i];
      fiber.number = i, fiber.state = State::kRun, fiber.where = "";
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, enter, 0);
    }
  }

  void run_block(unsigned number, std::mt19937& random) {
    block_index = {number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y)};
    ++counts.blocks;
    for (auto& [key, found] : shared_) {
      std::memset(found.memory.get(), 0xff, found.bytes + 2 * kGuard);
    }
    start_fibers();
    std::vector<int> turns(threads_);
    for (int i = 0; i < threads_; ++i) turns[i] = order == 1 ? threads_ - 1 - i : i;
    for (int live = threads_; live > 0;) {
      if (order > 1) std::shuffle(turns.begin(), turns.end(), random);
      bool ran = false;
      for (const int i : turns) {
        if (fibers_[i].state != State::kRun) continue;
        current_ = &fibers_[i];
        swapcontext(&main_, &current_->context);
        if (!error_.empty()) fail(std::exchange(error_, ""));
        live -= fibers_[i].state == State::kDone;
        ran = true;
      }
      if (live > 0 && !open_block_barrier() && !open_warp_barriers() && !ran) deadlock();
    }
    check_guards();
  }

  void check_guards() const {
    for (const auto& [key, found] : shared_) {
      for (size_t i = 0; i < kGuard; ++i) {
        if (found.memory[i] != 0xff || found.memory[kGuard + found.bytes + i] != 0xff) {
          fail("write outside a shared array");
        }
      }
    }
  }
};

inline void check_aligned(const void* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) Machine::fail("16 bytes at an odd address");
}

template <class T>
T counted_load(const T* from) {
  Machine::get().counts.loaded += sizeof(T);
  return *from;
}

// One block runs at a time, so every operation is atomic.
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
#define BLL_LAUNCH(kernel, grid, block, stream, ...) \
  (static_cast<void>(stream),                        \
   bll_emulator::Machine::get().launch(dim3(grid), dim3(block), [=] { kernel(__VA_ARGS__); }))
#define BLL_CHECK_ALIGNED(pointer) bll_emulator::check_aligned(pointer)

#define threadIdx (bll_emulator::Machine::get().thread_index())
#define blockIdx (bll_emulator::Machine::get().block_index)
#define blockDim (bll_emulator::Machine::get().block)
#define gridDim (bll_emulator::Machine::get().grid)
#define __syncthreads() bll_emulator::Machine::get().block_barrier(BLL_EMULATOR_HERE)
#define __syncwarp() bll_emulator::Machine::get().warp_barrier(~0u, BLL_EMULATOR_HERE)
#define __shfl_sync(mask, value, source) \
  bll_emulator::Machine::get().exchange(mask, value, source, BLL_EMULATOR_HERE)
#define __shfl_xor_sync(mask, value, lanes)                                      \
  bll_emulator::Machine::get().exchange(                                         \
      mask, value, static_cast<int>(threadIdx.x % 32) ^ static_cast<int>(lanes), \
      BLL_EMULATOR_HERE)
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
