// The options the functions of _core share, by the names users give them.
#pragma once

#include "cpu/names.h"
#include "numpy/arrays.h"

namespace bll::door {

template <class Value, size_t count>
Value look_up(const cpu::Named<Value> (&table)[count], const std::string& name,
              const char* argument) {
  if (const Value* value = cpu::find_named(table, name)) return *value;
  throw py::value_error(std::string(argument) + ": expected one of " + cpu::names_of(table) +
                        ", got '" + name + "'");
}

inline cpu::FamilyArgs family_args(const std::string& name, int64_t group, double tau,
                                   double tilt) {
  const cpu::FamilyArgs family{look_up(cpu::kFamilyNames, name, "family"), group, tau, tilt};
  if (const char* problem = cpu::problem_with(family)) throw py::value_error(problem);
  return family;
}

inline void fit_group(cpu::FamilyArgs& family, int64_t width) {
  if (cpu::fit_groups(family, width)) return;
  throw py::value_error("group: expected a divisor of " + std::to_string(width) + " latents, got " +
                        std::to_string(family.group));
}

inline py::array like(const py::array& array, bool wanted) {
  return py::array(array.dtype(), wanted ? shape_of(array) : Shape{0});
}

}  // namespace bll::door
