#include "cuda/pair_elements.cuh"

namespace bll::cuda {

const PairLaunchers kBernoulliLaunchers = {run_elements<Bernoulli>, run_table<Bernoulli>};

}  // namespace bll::cuda
