#include "cuda/pair_elements.cuh"

namespace bll::cuda {

const PairLaunchers kGaussianDiagonalLaunchers = {run_elements<GaussianDiagonal>,
                                                  run_table<GaussianDiagonal>};

}  // namespace bll::cuda
