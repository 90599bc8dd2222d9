#include "cuda/classes_bernoulli.h"
#include "cuda/classes_rows.cuh"
#include "cuda/classes_table.cuh"

namespace bll::cuda {

const ClassLaunchers kBernoulliClasses = {{BernoulliScore::rows(4), BernoulliScore::rows(8)},
                                          BernoulliScore::kTableLatents,
                                          run_class_rows<BernoulliScore>,
                                          run_class_table<BernoulliScore>};

}  // namespace bll::cuda
