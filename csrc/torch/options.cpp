#include "torch/options.h"

#include <torch/headeronly/util/Exception.h>

#include "cpu/names.h"

namespace bll::binding {

namespace {

template <class Value, size_t count>
Value look_up(const cpu::Named<Value> (&table)[count], const std::string& name,
              const char* argument) {
  if (const Value* value = cpu::find_named(table, name)) return *value;
  STD_TORCH_CHECK(false, argument, ": expected one of ", cpu::names_of(table), ", got '", name,
                  "'");
}

}  // namespace

cpu::FamilyArgs family_args(const std::string& name, int64_t group, double tau, double tilt) {
  const cpu::FamilyArgs family{look_up(cpu::kFamilyNames, name, "family"), group, tau, tilt};
  const char* problem = cpu::problem_with(family);
  STD_TORCH_CHECK(problem == nullptr, problem);
  return family;
}

cpu::Loss loss_of(const std::string& name) { return look_up(cpu::kLossNames, name, "loss"); }

cpu::Reduction reduction_of(const std::string& name) {
  return look_up(cpu::kReductionNames, name, "reduction");
}

cpu::Pool pool_of(const std::string& name) { return look_up(cpu::kPoolNames, name, "kind"); }

int planes_of(const cpu::FamilyArgs& family) { return family_planes(family.id); }

void fit_group(cpu::FamilyArgs& family, int64_t width) {
  STD_TORCH_CHECK(cpu::fit_groups(family, width), "group: expected a divisor of ", width,
                  " latents, got ", family.group);
}

}  // namespace bll::binding
