// The part of _core about losses between rows of a and b, and the next block's input.
#pragma once

#include "numpy/arrays.h"

namespace bll::door {

void bind_pair(py::module_& m, cpu::ParallelFor parallel_for);

}  // namespace bll::door
