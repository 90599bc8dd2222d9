#include "cpu/next.h"

#include <type_traits>

#include "cpu/isa.h"

namespace bll::cpu {

#define BLL_DECLARE(isa)                            \
  namespace isa {                                   \
  const NextKernels<float>& float_next_kernels();   \
  const NextKernels<double>& double_next_kernels(); \
  }
BLL_DECLARE(portable)
#if BLL_X86_TARGETS
BLL_DECLARE(avx2)
BLL_DECLARE(avx512)
#endif
#undef BLL_DECLARE

template <>
const NextKernels<float>& next_kernels<float>() {
#if BLL_X86_TARGETS
  if (current_isa() == Isa::kAvx512) return avx512::float_next_kernels();
  if (current_isa() == Isa::kAvx2) return avx2::float_next_kernels();
#endif
  return portable::float_next_kernels();
}

template <>
const NextKernels<double>& next_kernels<double>() {
#if BLL_X86_TARGETS
  if (current_isa() == Isa::kAvx512) return avx512::double_next_kernels();
  if (current_isa() == Isa::kAvx2) return avx2::double_next_kernels();
#endif
  return portable::double_next_kernels();
}

template <class Real>
NextOutput<Real>::NextOutput(const PairArgs& args, int64_t tile)
    : args_(args),
      kernels_(next_kernels<Real>()),
      kind_(next_kind(args.next_mix)),
      mix_(args.next_mix) {
  if (args.next == nullptr) return;
  means_ = Buffer<Real>(tile);
  if (!std::is_same_v<Real, float>) narrow_ = Buffer<float>(tile);
}

template <class Real>
void NextOutput<Real>::write(const Tile<Real>& tile, int64_t at) {
  const bool direct = element_size(args_.next_dtype) == sizeof(Real);
  Real* out = direct ? static_cast<Real*>(args_.next) + at : means_.get();
  kernels_.means[static_cast<int>(args_.family.id)](tile, kind_, mix_, out);
  if (direct) return;
  if constexpr (std::is_same_v<Real, float>) {
    store_narrow(out, at, tile.size);
  } else {
    const bool floats = args_.next_dtype == DType::kFloat32;
    float* narrow = floats ? static_cast<float*>(args_.next) + at : narrow_.get();
    kernels_.narrow(out, narrow, tile.size);
    if (!floats) store_narrow(narrow, at, tile.size);
  }
}

template <class Real>
void NextOutput<Real>::store_narrow(const float* from, int64_t at, int64_t size) const {
  void* to = advance(args_.next, args_.next_dtype, at);
  if (args_.next_dtype == DType::kFloat8) {
    kernels_.store_float8(from, static_cast<uint8_t*>(to), size);
  } else {
    store_tile(tile_kernels<float>(), from, to, args_.next_dtype, size);
  }
}

template class NextOutput<float>;
template class NextOutput<double>;

}  // namespace bll::cpu
