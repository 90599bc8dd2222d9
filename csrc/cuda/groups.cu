#include "cuda/groups.h"
#include "cuda/pair_groups.cuh"
#include "cuda/pair_table.cuh"

namespace bll::cuda {

// One per file: groups_<loss>.cu.
extern template void run_groups_of<Loss::kKl>(const FamilyArgs&, int, bool, const GroupView&, int,
                                              cudaStream_t);
extern template void run_groups_of<Loss::kKlFull>(const FamilyArgs&, int, bool, const GroupView&,
                                                  int, cudaStream_t);
extern template void run_groups_of<Loss::kReverseKl>(const FamilyArgs&, int, bool, const GroupView&,
                                                     int, cudaStream_t);
extern template void run_groups_of<Loss::kReverseKlFull>(const FamilyArgs&, int, bool,
                                                         const GroupView&, int, cudaStream_t);
extern template void run_groups_of<Loss::kEvidence>(const FamilyArgs&, int, bool, const GroupView&,
                                                    int, cudaStream_t);

namespace {

// What the table kernel takes for a family where the gradients are there already: it adds up `a`.
template <class Real>
struct Given {
  static constexpr int kPlanes = 1;

  Given(double /*tau*/, double /*tilt*/) {}

  template <Loss L>
  BLL_HD PairTerms<Real, 1> terms(const Real (&a)[1], const Real (&)[1]) const {
    return {0, {0}, {a[0]}};
  }
};

}  // namespace

void run_groups(const FamilyArgs& family, Loss loss, int tier, bool wide, const GroupView& view,
                int blocks, cudaStream_t stream) {
  switch (loss) {
    case Loss::kKl:
      return run_groups_of<Loss::kKl>(family, tier, wide, view, blocks, stream);
    case Loss::kKlFull:
      return run_groups_of<Loss::kKlFull>(family, tier, wide, view, blocks, stream);
    case Loss::kReverseKl:
      return run_groups_of<Loss::kReverseKl>(family, tier, wide, view, blocks, stream);
    case Loss::kReverseKlFull:
      return run_groups_of<Loss::kReverseKlFull>(family, tier, wide, view, blocks, stream);
    case Loss::kEvidence:
      return run_groups_of<Loss::kEvidence>(family, tier, wide, view, blocks, stream);
  }
}

void run_class_sums(bool wide, const TableView& view, int64_t blocks, cudaStream_t stream) {
  const FamilyArgs none{};
  if (wide)
    return launch_table<Given, Loss::kEvidence, Wide<float>, false>(none, view, blocks, stream);
  launch_table<Given, Loss::kEvidence, Single, false>(none, view, blocks, stream);
}

}  // namespace bll::cuda
