// The next block's input, tile by tile: its kernels, and where they write.
#pragma once

#include "cpu/api.h"
#include "cpu/buffer.h"
#include "cpu/tile.h"
#include "losses/next.h"

namespace bll::cpu {

// `out` holds tile.size means.
template <class Real>
using NextKernel = void (*)(const Tile<Real>& tile, Next kind, const NextMix<Real>& mix, Real* out);

template <class Real>
struct NextKernels {
  NextKernel<Real> means[kFamilyCount];
  void (*narrow)(const Real* from, float* to, int64_t size);
  void (*store_float8)(const float* from, uint8_t* to, int64_t size);
};

// Kernels of the selected instruction set.
template <class Real>
const NextKernels<Real>& next_kernels();

// What one thread needs to write args.next.
template <class Real>
class NextOutput {
 public:
  NextOutput(const PairArgs& args, int64_t tile);

  // Means of a tile, the first one at `at`.
  void write(const Tile<Real>& tile, int64_t at);

 private:
  void store_narrow(const float* from, int64_t at, int64_t size) const;

  const PairArgs& args_;
  const NextKernels<Real>& kernels_;
  Next kind_;
  NextMix<Real> mix_;
  Buffer<Real> means_;
  Buffer<float> narrow_;  // of means in double
};

}  // namespace bll::cpu
