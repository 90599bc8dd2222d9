#include "cpu/isa.h"

#include <atomic>
#include <cstring>

#include "cpu/api.h"

namespace bll::cpu {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

int best_isa() {
#if BLL_X86_TARGETS
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("x86-64-v3")) return 0;
  return __builtin_cpu_supports("x86-64-v4") ? 2 : 1;
#else
  return 0;
#endif
}

std::atomic<int>& selected() {
  static std::atomic<int> index{best_isa()};
  return index;
}

}  // namespace

Isa current_isa() { return static_cast<Isa>(selected().load(std::memory_order_relaxed)); }

int isa_count() {
  static const int count = best_isa() + 1;
  return count;
}

const char* isa_name(int index) { return kNames[index]; }

bool select_isa(const char* name) {
  for (int i = 0; i < isa_count(); ++i) {
    if (std::strcmp(name, kNames[i]) == 0) {
      selected().store(i, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

const char* selected_isa() { return isa_name(selected().load(std::memory_order_relaxed)); }

}  // namespace bll::cpu
