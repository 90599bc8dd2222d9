// The strings of the op schemas as the kernels' enums.
#pragma once

#include <string>

#include "cpu/api.h"

namespace bll::binding {

cpu::FamilyArgs family_args(const std::string& name, int64_t group, double tau, double tilt);
cpu::Loss loss_of(const std::string& name);
cpu::Reduction reduction_of(const std::string& name);
cpu::Pool pool_of(const std::string& name);

// Parameter planes per latent: 1, or 2 for [*batch, 2, D].
int planes_of(const cpu::FamilyArgs& family);

// A categorical width must be a whole number of groups; settles the group of no latents.
void fit_group(cpu::FamilyArgs& family, int64_t width);

}  // namespace bll::binding
