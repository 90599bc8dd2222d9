// One kernel for everything that concerns a row alone: its scores, their softmax, its value and
// residual, and the gradient to its latents.
#pragma once

#include "cuda/classes_row_steps.cuh"
#include "cuda/launch.h"

namespace bll::cuda {

template <class Family, class Access, int R>
__global__ void __launch_bounds__(kClassThreads, kClassBlocks)
    class_rows(const Family family, const ClassView v) {
  BLL_SHARED(Quad, staged, kStaged / 4);
  BLL_SHARED(float, scores, kMostClasses* R);
  BLL_SHARED(float, losses, R);
  const ClassRows<Family, Access, R> rows(family, v, staged->x, scores);
  const int64_t first = int64_t{blockIdx.x} * R;
  if (v.labels != nullptr) {
    rows.score();
    __syncthreads();
    const int r = threadIdx.x / kWarp;
    if (r < R) {
      const bool inside = first + r < v.rows;
      const float loss = inside ? rows.softmax(r) : 0.0f;
      if (threadIdx.x % kWarp == 0) {
        losses[r] = loss;
        if (v.per_row && inside) v.value[first + r] = loss;
      }
      // Rows that do not exist still have coefficients to be multiplied.
      for (int c = threadIdx.x % kWarp; !inside && c < v.classes; c += kWarp) scores[c * R + r] = 0;
    }
  } else {
    rows.read_residual();
  }
  __syncthreads();
  if (v.value != nullptr && !v.per_row && threadIdx.x == 0) {
    float sum = 0;
    for (int r = 0; r < R; ++r) sum += losses[r];
    v.value[blockIdx.x] = v.value_scale * sum;
  }
  if (v.grad_a != nullptr) rows.store_gradient();
}

template <class Family, class Access>
void launch_class_rows(const FamilyArgs& args, const ClassPlan& plan, const ClassView& view,
                       cudaStream_t stream) {
  const Family family(args, view.normalize);
  const unsigned blocks = static_cast<unsigned>(plan.row_blocks);
  constexpr int R = Family::rows(Access::kCount);
  if (plan.many_rows) {
    BLL_LAUNCH((class_rows<Family, Access, R>), blocks, kClassThreads, stream, family, view);
  } else {
    BLL_LAUNCH((class_rows<Family, Access, 1>), blocks, kClassThreads, stream, family, view);
  }
}

template <class Family>
void run_class_rows(const FamilyArgs& family, const ClassPlan& plan, const ClassView& view,
                    cudaStream_t stream) {
  if (!plan.wide) return launch_class_rows<Family, Single>(family, plan, view, stream);
  switch (view.a_dtype) {
    case DType::kBFloat16:
      return launch_class_rows<Family, Wide<__nv_bfloat16>>(family, plan, view, stream);
    case DType::kFloat16:
      return launch_class_rows<Family, Wide<__half>>(family, plan, view, stream);
    default:
      return launch_class_rows<Family, Wide<float>>(family, plan, view, stream);
  }
}

}  // namespace bll::cuda
