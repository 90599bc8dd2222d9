#include "cuda/pair_elements.cuh"

namespace bll::cuda {

const PairLaunchers kGaussianLaunchers = {run_elements<Gaussian>, run_table<Gaussian>};

}  // namespace bll::cuda
