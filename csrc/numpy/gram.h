// The part of _core about the rows of a batch among themselves: Gram loss and class means.
#pragma once

#include "numpy/arrays.h"

namespace bll::door {

void bind_gram(py::module_& m, cpu::ParallelFor parallel_for);

}  // namespace bll::door
