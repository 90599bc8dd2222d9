#include "cpu/tile.h"

#include <new>
#include <type_traits>

#include "cpu/isa.h"
#include "losses/pair.h"

namespace bll::cpu {

#define BLL_DECLARE(isa)                       \
  namespace isa {                              \
  const TileKernels<float>& float_kernels();   \
  const TileKernels<double>& double_kernels(); \
  }
BLL_DECLARE(portable)
#if BLL_X86_TARGETS
BLL_DECLARE(avx2)
BLL_DECLARE(avx512)
#endif
#undef BLL_DECLARE

template <>
const TileKernels<float>& tile_kernels<float>() {
#if BLL_X86_TARGETS
  if (current_isa() == Isa::kAvx512) return avx512::float_kernels();
  if (current_isa() == Isa::kAvx2) return avx2::float_kernels();
#endif
  return portable::float_kernels();
}

template <>
const TileKernels<double>& tile_kernels<double>() {
#if BLL_X86_TARGETS
  if (current_isa() == Isa::kAvx512) return avx512::double_kernels();
  if (current_isa() == Isa::kAvx2) return avx2::double_kernels();
#endif
  return portable::double_kernels();
}

namespace {

template <class Family>
FamilyObject wrap_family(const FamilyArgs& args) {
  static_assert(sizeof(Family) <= sizeof(FamilyObject::bytes));
  static_assert(std::is_trivially_copyable_v<Family>);
  FamilyObject object;
  new (object.bytes) Family(args.tau, args.tilt);
  return object;
}

}  // namespace

template <class Real>
FamilyObject make_family(const FamilyArgs& args) {
  switch (args.id) {
#define BLL_CASE(id, name, Family, planes) \
  case FamilyId::id:                       \
    return wrap_family<Family<Real>>(args);
    BLL_FAMILIES(BLL_CASE)
#undef BLL_CASE
  }
  return FamilyObject{};
}

template FamilyObject make_family<float>(const FamilyArgs& args);
template FamilyObject make_family<double>(const FamilyArgs& args);

}  // namespace bll::cpu
