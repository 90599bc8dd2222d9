// What differs between the libraries made of the same binding sources: `_C` for CPU tensors and,
// with BLL_CUDA defined, `_C_cuda` for CUDA tensors.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "cpu/api.h"

#if defined(BLL_CUDA)
namespace bll::cuda {
struct OptimArgs;
struct OptimTensor;
struct SoftmaxRows;
}  // namespace bll::cuda
#endif

#if !defined(BLL_OPS)
#define BLL_OPS bll_native  // the namespace of the ops
#endif
#if !defined(BLL_DISPATCH_KEY)
#if defined(BLL_CUDA)
#define BLL_DISPATCH_KEY CUDA
#else
#define BLL_DISPATCH_KEY CPU
#endif
#endif

namespace bll::binding::device {

#if defined(BLL_CUDA)
// The host does not wait for what tensors hold: labels go unchecked (the kernels answer NaN), and
// rows that no single stride connects are copied.
inline constexpr bool kHostReads = false;
inline constexpr bool kFloat64 = false;
inline constexpr bool kResidual = false;  // whether class_loss_both needs memory for it
#else
inline constexpr bool kHostReads = true;
inline constexpr bool kFloat64 = true;
inline constexpr bool kResidual = true;
#endif

// Runs the kernels on the device of `like`, in the order of its other work.
void pair_loss(const cpu::PairArgs& args, const torch::stable::Tensor& like);
void class_loss_forward(const cpu::ClassArgs& args, const torch::stable::Tensor& like);
void class_loss_backward(const cpu::ClassArgs& args, const torch::stable::Tensor& like);
// Both, with gradients of the value itself; `residual` may be left unwritten.
void class_loss_both(const cpu::ClassArgs& args, const torch::stable::Tensor& like);
void grid_pool_forward(const cpu::PoolArgs& args, const torch::stable::Tensor& like);
void grid_pool_backward(const cpu::PoolArgs& args, const torch::stable::Tensor& like);
void standardize_forward(const cpu::StandardizeArgs& args, const torch::stable::Tensor& like);
void standardize_backward(const cpu::StandardizeArgs& args, const torch::stable::Tensor& like);
void gram_loss(const cpu::GramArgs& args, const torch::stable::Tensor& like);
void class_means(const cpu::ClassMeansArgs& args, const torch::stable::Tensor& like);
void class_means_backward(const cpu::ClassMeansGradArgs& args, const torch::stable::Tensor& like);
#if defined(BLL_CUDA)
// Checks the gradients where `args.found` is given, then updates.
void optim_step(const cuda::OptimTensor* tensors, int count, const cuda::OptimArgs& args,
                const torch::stable::Tensor& like);
void softmax_rows(const cuda::SoftmaxRows& args, const torch::stable::Tensor& like);
void pooled_class_loss(const cpu::ClassArgs& args, const cpu::PoolArgs& pool, float* grad_cells,
                       const torch::stable::Tensor& like);
#endif

}  // namespace bll::binding::device
