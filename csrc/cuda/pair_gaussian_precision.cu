#include "cuda/pair_elements.cuh"

namespace bll::cuda {

const PairLaunchers kGaussianPrecisionLaunchers = {run_elements<GaussianPrecision>,
                                                   run_table<GaussianPrecision>};

}  // namespace bll::cuda
