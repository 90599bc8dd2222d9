// The stages of a class loss, for the doors that put them together.
#pragma once

#include "cuda/classes.h"
#include "cuda/workspace.h"

namespace bll::cuda {

bool wants_sums(const ClassArgs& args, ClassPass pass);

// Where the stages of one call leave what the next one reads.
struct ClassScratch {
  float *values = nullptr, *residual = nullptr, *tables = nullptr, *biases = nullptr;

  ClassScratch(const ClassArgs& args, ClassPass pass, const ClassPlan& plan, Workspace& workspace);
};

ClassView view_of(const ClassArgs& args, ClassPass pass, const ClassPlan& plan,
                  const ClassScratch& scratch);

// The sums over rows, from the residual and the latents of `rows`.
void run_sums(const ClassArgs& args, const ClassPlan& plan, const ClassView& rows,
              const ClassScratch& scratch, cudaStream_t stream);

// Adds up what blocks and sections left.
void finish(const ClassArgs& args, const ClassPlan& plan, const ClassView& view,
            const ClassScratch& scratch, cudaStream_t stream);

// Sums over no rows.
cudaError_t clear(const ClassArgs& args, ClassPass pass, cudaStream_t stream);

}  // namespace bll::cuda
