// The Gram loss's loops of every instruction set, and what they share: rows of length one in the
// compute type, and a panel of the Gram matrix that only ever exists a tile at a time.
#pragma once

#include "cpu/api.h"
#include "cpu/buffer.h"
#include "cpu/isa.h"

namespace bll::cpu {

inline constexpr int64_t kGramRows = 32;     // rows of a panel: one piece of work
inline constexpr int64_t kGramColumns = 64;  // columns of a tile
inline constexpr int64_t kGramStep = 64;     // latents of a row are padded to whole steps

// Rows divided by their norm, padded with zeros; inverse[i] = 1 / norm, 0 for a row of zeros.
template <class Real>
struct UnitRows {
  int64_t width = 0, stride = 0;
  Buffer<Real> rows, inverse;

  UnitRows() = default;
  // The odd distance keeps rows from competing for the same cache sets.
  UnitRows(int64_t count, int64_t latents)
      : width(latents),
        stride((latents + kGramStep - 1) / kGramStep * kGramStep + 16),
        rows(count * stride),
        inverse(count) {}
};

template <class Real>
struct GramProblem {
  const GramArgs& args;
  UnitRows<Real> unit, target;
  Buffer<double> factor;  // d total / d value of every row: upstream * weight * 1 / rows
  Buffer<double> values;  // of the rows, before their weights; or of the half panels

  explicit GramProblem(const GramArgs& gram_args) : args(gram_args) {}
};

template <class Real>
struct GramKernels {
  void (*unit_row)(const Rows& rows, int64_t row, bool center, UnitRows<Real>& out);
  // Values of the rows [begin, end), at most kGramRows, and their gradients if wanted.
  void (*panel)(const GramProblem<Real>& problem, int64_t begin, int64_t end);
  // Their share of the sum over all pairs of factor * gap^2 / count, each pair of rows met once.
  double (*half_panel)(const GramProblem<Real>& problem, int64_t begin, int64_t end);
};

#define BLL_DECLARE(isa)                            \
  namespace isa {                                   \
  const GramKernels<float>& float_gram_kernels();   \
  const GramKernels<double>& double_gram_kernels(); \
  }
BLL_DECLARE(portable)
#if BLL_X86_TARGETS
BLL_DECLARE(avx2)
BLL_DECLARE(avx512)
#endif
#undef BLL_DECLARE

}  // namespace bll::cpu
