#include "cuda/classes_linear.h"
#include "cuda/classes_rows.cuh"
#include "cuda/classes_table.cuh"

namespace bll::cuda {

const ClassLaunchers kLinearClasses = {{LinearScore::rows(4), LinearScore::rows(8)},
                                       LinearScore::kTableLatents,
                                       run_class_rows<LinearScore>,
                                       run_class_table<LinearScore>};

}  // namespace bll::cuda
