// The machine of the emulator: threads are fibers that run one at a time.
//
// A fiber runs until a barrier or a shuffle. Barriers open when all live threads of the block (or
// of the cluster, or all lanes a shuffle names, at the same place) have come. The order of threads
// and blocks is forward, backward or shuffled. Shared memory is poisoned with NaN before each block
// and has guard zones. What the emulator finds wrong it throws. It knows no weak memory ordering,
// no rounding modes of the device's own instructions and no two blocks at a time but a cluster's.
#pragma once

#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace bll_emulator {

enum class State { kRun, kClusterBarrier, kBlockBarrier, kWarpBarrier, kDone };

inline constexpr size_t kStack = 128 << 10, kGuard = 64;
inline constexpr int kLanes = 32;

// 16 bytes on their way to shared memory.
struct Copy {
  void* to;
  const void* from;
};

struct Fiber {
  ucontext_t context;
  jmp_buf at;  // where it goes on; unlike swapcontext, jumps leave the signal mask alone
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool begun = false;
  State state = State::kDone;
  uint32_t mask = 0;
  const char* where = "";
  int rank = 0;  // of its block in the cluster
  int warp = 0, lane = 0;
  uint3 thread{}, block{};
  uint8_t phase = 0;
  std::vector<Copy> copies;
};

struct Warp {
  uint64_t slots[2][kLanes];
};

struct Shared {
  std::unique_ptr<unsigned char[]> memory;
  size_t bytes = 0;

  unsigned char* data() const { return memory.get() + kGuard; }
};

// What a run was made of, for tests that count.
struct Counts {
  int64_t launches = 0, blocks = 0, barriers = 0, shuffles = 0, loaded = 0;
};

// How a kernel is launched: blocks of a cluster run together, and have dynamic shared memory.
struct Shape {
  dim3 grid, block;
  int cluster = 1;
  size_t dynamic = 0;
};

class Machine {
 public:
  Shape shape;
  int order = 0;  // 0 forward, 1 backward, else the seed of a shuffle
  Counts counts;

  static Machine& get() { return machine_; }

  const uint3& thread_index() const { return current_->thread; }
  const uint3& block_index() const { return current_->block; }

  void launch(const Shape& of, std::function<void()> body) {
    shape = of, body_ = std::move(body);
    const size_t threads = size_t{of.block.x} * of.block.y * of.block.z;
    const size_t blocks = size_t{of.grid.x} * of.grid.y * of.grid.z;
    if (threads == 0 || threads > 1024 || blocks == 0) fail("launch of an impossible shape");
    if (of.cluster < 1 || of.cluster > 8 || of.grid.x % of.cluster != 0 || of.grid.y != 1) {
      fail("launch of an impossible cluster");
    }
    threads_ = static_cast<int>(threads);
    const size_t fibers = threads * of.cluster;
    while (fibers_.size() < fibers) fibers_.push_back(std::make_unique<Fiber>());
    warps_.resize((threads + kLanes - 1) / kLanes * of.cluster);
    shared_.clear();
    shared_.resize(of.cluster);
    std::vector<size_t> turns(blocks / of.cluster);
    for (size_t i = 0; i < turns.size(); ++i) turns[i] = order == 1 ? turns.size() - 1 - i : i;
    std::mt19937 random(static_cast<unsigned>(order));
    if (order > 1) std::shuffle(turns.begin(), turns.end(), random);
    ++counts.launches;
    for (const size_t i : turns) run_cluster(static_cast<unsigned>(i), random);
  }

  void block_barrier(const char* where) { pause(State::kBlockBarrier, 0, where); }
  void cluster_barrier(const char* where) { pause(State::kClusterBarrier, 0, where); }
  void warp_barrier(uint32_t mask, const char* where) { pause(State::kWarpBarrier, mask, where); }

  template <class T>
  T exchange(uint32_t mask, T value, int source, const char* where) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    Warp& warp = warps_[current_->warp];
    const int phase = current_->phase;
    current_->phase ^= 1;  // two buffers in turn, so that one barrier each is enough
    std::memcpy(&warp.slots[phase][current_->lane], &value, sizeof value);
    ++counts.shuffles;
    warp_barrier(mask, where);
    if (source < 0 || source >= kLanes || !(mask >> source & 1)) fail("shuffle from outside");
    T result;
    std::memcpy(&result, &warp.slots[phase][source], sizeof result);
    return result;
  }

  void* shared(const void* key, size_t bytes) { return shared_of(current_->rank, key, bytes); }
  void* dynamic_shared() {
    static const char key = 0;
    return shared(&key, shape.dynamic);
  }

  // The same place in the shared memory of another block of the cluster.
  void* of_block(const void* pointer, int rank) {
    if (rank < 0 || rank >= shape.cluster) fail("shared memory of a block outside the cluster");
    for (int i = 0; i < threads_; ++i) {
      const bool left = fibers_[rank * threads_ + i]->state == State::kDone;
      if (left) fail("shared memory of a block that has left");
    }
    for (const auto& [key, found] : shared_[current_->rank]) {
      const auto offset = static_cast<const unsigned char*>(pointer) - found.data();
      if (offset < 0 || static_cast<size_t>(offset) >= found.bytes) continue;
      return static_cast<unsigned char*>(shared_of(rank, key, found.bytes)) + offset;
    }
    fail("a pointer that is not to shared memory");
  }

  // A copy arrives no earlier than its thread waits for it.
  void copy_async(void* to, const void* from) { current_->copies.push_back({to, from}); }
  void wait_for_copies() {
    for (const Copy& copy : current_->copies) std::memcpy(copy.to, copy.from, 16);
    current_->copies.clear();
  }

  [[noreturn]] static void fail(const std::string& message) {
    throw std::runtime_error("CUDA emulator: " + message);
  }

 private:
  static Machine machine_;
  std::vector<std::unique_ptr<Fiber>> fibers_;  // the threads of one block after the other
  std::vector<Warp> warps_;
  std::vector<std::map<const void*, Shared>> shared_;  // by rank
  std::function<void()> body_;
  std::string error_;
  jmp_buf main_;
  Fiber* current_ = nullptr;
  int threads_ = 0;

  // Fibers outlive a launch: after its last block one waits here for the next.
  static void enter() {
    for (;;) {
      Machine& m = get();
      try {
        m.body_();
        if (!m.current_->copies.empty()) fail("a thread left copies that it never waited for");
      } catch (const std::exception& error) {
        m.error_ = error.what();
      }
      m.current_->state = State::kDone;
      m.leave();
    }
  }

  void leave() {
    if (_setjmp(current_->at) == 0) _longjmp(main_, 1);
  }

  void resume(Fiber& fiber) {
    current_ = &fiber;
    if (_setjmp(main_) != 0) return;
    if (fiber.begun) _longjmp(fiber.at, 1);
    fiber.begun = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    setcontext(&fiber.context);
  }

  void pause(State state, uint32_t mask, const char* where) {
    current_->state = state, current_->mask = mask, current_->where = where;
    leave();
  }

  void* shared_of(int rank, const void* key, size_t bytes) {
    Shared& found = shared_[rank][key];
    if (!found.memory) {
      found.bytes = bytes;
      found.memory.reset(new unsigned char[bytes + 2 * kGuard]);
      std::memset(found.memory.get(), 0xff, bytes + 2 * kGuard);
    }
    return found.data();
  }

  // Opens a barrier of `count` fibers from `first` on, if all of them have come to it.
  bool open_barrier(int first, int count, State wanted, const char* name) {
    int live = 0, waiting = 0;
    for (int i = first; i < first + count; ++i) {
      live += fibers_[i]->state != State::kDone;
      waiting += fibers_[i]->state == wanted;
    }
    if (live == 0 || waiting != live) return false;
    // Threads that have left do not count on a GPU either, but kernels here never rely on that.
    if (live != count) fail(std::string(name) + " after some threads have left");
    const char* where = fibers_[first]->where;
    for (int i = first; i < first + count; ++i) {
      if (fibers_[i]->where != where) fail(std::string("threads wait at different ") + name);
    }
    for (int i = first; i < first + count; ++i) fibers_[i]->state = State::kRun;
    ++counts.barriers;
    return true;
  }

  bool open_barriers() {
    bool any = false;
    const int all = threads_ * shape.cluster;
    for (int first = 0; first < all; first += threads_) {
      any |= open_barrier(first, threads_, State::kBlockBarrier, "__syncthreads");
    }
    if (any) return true;
    return open_barrier(0, all, State::kClusterBarrier, "cluster barrier");
  }

  bool open_warp(Fiber* const* lanes, int count) {
    uint32_t pending = 0;
    for (int k = 0; k < count; ++k) {
      if (lanes[k]->state == State::kWarpBarrier) pending |= 1u << k;
    }
    bool any = false;
    while (pending != 0) {
      const int first = __builtin_ctz(pending);
      const Fiber& fiber = *lanes[first];
      if (!(fiber.mask >> first & 1)) fail("a lane outside its own mask");
      uint32_t here = 0;
      for (int k = first; k < count; ++k) {
        const Fiber& other = *lanes[k];
        const bool same = other.mask == fiber.mask && other.where == fiber.where;
        if ((pending >> k & 1) != 0 && same) here |= 1u << k;
      }
      pending &= ~here;
      if (here != fiber.mask) continue;
      for (int k = first; k < count; ++k) {
        if (here >> k & 1) lanes[k]->state = State::kRun;
      }
      any = true;
    }
    return any;
  }

  bool open_warp_barriers() {
    bool any = false;
    Fiber* lanes[kLanes];
    for (int block = 0; block < shape.cluster; ++block) {
      for (int first = 0; first < threads_; first += kLanes) {
        const int count = std::min(kLanes, threads_ - first);
        for (int k = 0; k < count; ++k) lanes[k] = fibers_[block * threads_ + first + k].get();
        any |= open_warp(lanes, count);
      }
    }
    return any;
  }

  [[noreturn]] void deadlock() const {
    std::string text = "deadlock in block " + std::to_string(fibers_[0]->block.x) + ":";
    int shown = 0;
    for (int i = 0; i < threads_ * shape.cluster && shown < 6; ++i) {
      if (fibers_[i]->state == State::kDone) continue;
      text += " t" + std::to_string(i) + "@" + fibers_[i]->where;
      ++shown;
    }
    fail(text);
  }

  void start_fibers(unsigned cluster) {
    const int warps = (threads_ + kLanes - 1) / kLanes;
    for (int i = 0; i < threads_ * shape.cluster; ++i) {
      Fiber& fiber = *fibers_[i];
      fiber.rank = i / threads_;
      const unsigned n = static_cast<unsigned>(i % threads_);
      const unsigned block = cluster * shape.cluster + fiber.rank;
      fiber.thread = {n % shape.block.x, n / shape.block.x % shape.block.y,
                      n / (shape.block.x * shape.block.y)};
      fiber.block = {block % shape.grid.x, block / shape.grid.x % shape.grid.y,
                     block / (shape.grid.x * shape.grid.y)};
      fiber.warp = fiber.rank * warps + static_cast<int>(n) / kLanes;
      fiber.lane = static_cast<int>(n) % kLanes;
      fiber.state = State::kRun, fiber.where = "", fiber.phase = 0;
      fiber.copies.clear();
    }
  }

  // What stopped in the middle of a kernel must not go on in the next.
  [[noreturn]] void stop(const std::string& message) {
    for (const auto& fiber : fibers_) fiber->begun = false;
    throw std::runtime_error(message);
  }

  void run_cluster(unsigned number, std::mt19937& random) {
    counts.blocks += shape.cluster;
    for (auto& of_block : shared_) {
      for (auto& [key, found] : of_block) {
        std::memset(found.memory.get(), 0xff, found.bytes + 2 * kGuard);
      }
    }
    start_fibers(number);
    try {
      run_fibers(random);
    } catch (const std::exception& error) {
      stop(error.what());
    }
    check_guards();
  }

  void run_fibers(std::mt19937& random) {
    const int all = threads_ * shape.cluster;
    std::vector<int> turns(all);
    for (int i = 0; i < all; ++i) turns[i] = order == 1 ? all - 1 - i : i;
    for (int live = all; live > 0;) {
      if (order > 1) std::shuffle(turns.begin(), turns.end(), random);
      bool ran = false;
      for (const int i : turns) {
        Fiber& fiber = *fibers_[i];
        if (fiber.state != State::kRun) continue;
        resume(fiber);
        if (!error_.empty()) throw std::runtime_error(std::exchange(error_, ""));
        live -= fiber.state == State::kDone;
        ran = true;
      }
      if (live > 0 && !open_warp_barriers() && !open_barriers() && !ran) deadlock();
    }
  }

  void check_guards() const {
    for (const auto& of_block : shared_) {
      for (const auto& [key, found] : of_block) {
        for (size_t i = 0; i < kGuard; ++i) {
          if (found.memory[i] != 0xff || found.memory[kGuard + found.bytes + i] != 0xff) {
            fail("write outside a shared array");
          }
        }
      }
    }
  }
};

inline Machine Machine::machine_;

}  // namespace bll_emulator
