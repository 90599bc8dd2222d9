// The CUDA side of device.h: current stream, device guard, scratch memory from torch's allocator.
#include "torch/device.h"

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <map>
#include <mutex>

#include "cuda/api.h"
#include "cuda/batch.h"
#include "cuda/classes.h"
#include "cuda/groups.h"
#include "cuda/optim.h"
#include "cuda/pool.h"
#include "cuda/pooled.h"
#include "cuda/softmax.h"
#include "cuda/standardize.h"
#include "torch/rows.h"

// Declared by torch's headers for CUDA builds of torch only; this library is built with any.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace bll::binding::device {

namespace {

void check(cudaError_t error) {
  // The runtime would report it again behind the next call, which did nothing wrong.
  if (error != cudaSuccess) cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

int attribute(cudaDeviceAttr name, int index) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, index));
  return value;
}

// Of the current device. What it has room for takes longer to ask than a launch: once for each.
const cuda::Device& properties_of(int index) {
  static std::mutex mutex;
  static std::map<int, cuda::Device> known;
  const std::lock_guard lock(mutex);
  const auto found = known.find(index);
  if (found != known.end()) return found->second;
  cuda::Device device{};
  device.processors = attribute(cudaDevAttrMultiProcessorCount, index);
  device.shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  if (attribute(cudaDevAttrClusterLaunch, index) != 0) cuda::find_clusters(device);
  return known.emplace(index, device).first->second;
}

// The runtime inside this library has a current device of its own where no context is current.
void make_current(int index) {
  int current = -1;
  check(cudaGetDevice(&current));
  if (current != index) check(cudaSetDevice(index));
}

// Makes the tensor's device current for as long as it lives.
class Launch {
 public:
  explicit Launch(const Tensor& like) : guard_(like.get_device_index()) {
    const int32_t index = like.get_device_index();
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index, &stream) == AOTI_TORCH_SUCCESS,
                    "CUDA: no current stream");
    stream_ = static_cast<cudaStream_t>(stream);
    make_current(index);
    device_ = properties_of(index);
  }

  const cuda::Device& device() const { return device_; }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
  cuda::Device device_{};
};

// Torch reuses the memory only behind what this stream has queued by then.
Tensor scratch(const Tensor& like, size_t bytes) {
  return new_empty(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

}  // namespace

void pair_loss(const cpu::PairArgs& args, const Tensor& like) {
  const Launch launch(like);
  const Tensor workspace = scratch(like, cuda::pair_workspace(args, launch.device()));
  check(cuda::pair_loss(args, launch.device(), workspace.mutable_data_ptr(), launch.stream()));
}

void class_loss(const cpu::ClassArgs& args, cuda::ClassPass pass, const Tensor& like) {
  STD_TORCH_CHECK(cuda::serves_classes(args),
                  "class_loss: the CUDA kernels take gaussian, "
                  "gaussian-precision and bernoulli with at most ",
                  cuda::kMostClasses, " classes (the triton backend takes the others)");
  const Launch launch(like);
  const Tensor workspace = scratch(like, cuda::class_workspace(args, pass, launch.device()));
  check(
      cuda::class_loss(args, pass, launch.device(), workspace.mutable_data_ptr(), launch.stream()));
}

void class_loss_forward(const cpu::ClassArgs& args, const Tensor& like) {
  class_loss(args, cuda::ClassPass::kValue, like);
}

void class_loss_backward(const cpu::ClassArgs& args, const Tensor& like) {
  class_loss(args, cuda::ClassPass::kGradients, like);
}

void class_loss_both(const cpu::ClassArgs& args, const Tensor& like) {
  class_loss(args, cuda::ClassPass::kBoth, like);
}

void grid_pool_forward(const cpu::PoolArgs& args, const Tensor& like) {
  const Launch launch(like);
  check(cuda::grid_pool_forward(args, launch.stream()));
}

void grid_pool_backward(const cpu::PoolArgs& args, const Tensor& like) {
  const Launch launch(like);
  const Tensor workspace = scratch(like, cuda::pool_workspace(args));
  check(cuda::grid_pool_backward(args, workspace.mutable_data_ptr(), launch.stream()));
}

void standardize_forward(const cpu::StandardizeArgs& args, const Tensor& like) {
  const Launch launch(like);
  const Tensor workspace = scratch(like, cuda::standardize_workspace(args, launch.device()));
  check(cuda::standardize_forward(args, launch.device(), workspace.mutable_data_ptr(),
                                  launch.stream()));
}

void standardize_backward(const cpu::StandardizeArgs& args, const Tensor& like) {
  const Launch launch(like);
  const Tensor workspace = scratch(like, cuda::standardize_workspace(args, launch.device()));
  check(cuda::standardize_backward(args, launch.device(), workspace.mutable_data_ptr(),
                                   launch.stream()));
}

void gram_loss(const cpu::GramArgs& args, const Tensor& like) {
  const Launch launch(like);
  const Tensor workspace = scratch(like, cuda::gram_workspace(args, launch.device()));
  check(cuda::gram_loss(args, launch.device(), workspace.mutable_data_ptr(), launch.stream()));
}

void class_means(const cpu::ClassMeansArgs& args, const Tensor& like) {
  const Launch launch(like);
  const Tensor workspace = scratch(like, cuda::means_workspace(args, launch.device()));
  check(cuda::class_means(args, launch.device(), workspace.mutable_data_ptr(), launch.stream()));
}

void class_means_backward(const cpu::ClassMeansGradArgs& args, const Tensor& like) {
  const Launch launch(like);
  check(cuda::class_means_backward(args, launch.stream()));
}

void optim_step(const cuda::OptimTensor* tensors, int count, const cuda::OptimArgs& args,
                const Tensor& like) {
  const Launch launch(like);
  if (args.found != nullptr) check(cuda::optim_check(tensors, count, args, launch.stream()));
  check(cuda::optim_update(tensors, count, args, launch.stream()));
}

void softmax_rows(const cuda::SoftmaxRows& args, const Tensor& like) {
  const Launch launch(like);
  check(cuda::softmax_rows(args, launch.stream()));
}

void pooled_class_loss(const cpu::ClassArgs& args, const cpu::PoolArgs& pool, float* grad_cells,
                       const Tensor& like) {
  STD_TORCH_CHECK(cuda::serves_pooled(args, pool),
                  "pooled_class_loss: the CUDA kernel takes gaussian and gaussian-precision with "
                  "mean pooling, at most ",
                  cuda::kMostClasses, " classes and ", cuda::kPooledLatents, " latents");
  const Launch launch(like);
  const cuda::PooledMap map{pool, grad_cells};
  const Tensor workspace = scratch(like, cuda::pooled_workspace(args, map, launch.device()));
  check(cuda::pooled_class_loss(args, map, launch.device(), workspace.mutable_data_ptr(),
                                launch.stream()));
}

}  // namespace bll::binding::device
