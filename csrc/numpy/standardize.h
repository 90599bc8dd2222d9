// The part of _core about channels of mean 0 and variance 1.
#pragma once

#include "numpy/arrays.h"

namespace bll::door {

void bind_standardize(py::module_& m, cpu::ParallelFor parallel_for);

}  // namespace bll::door
