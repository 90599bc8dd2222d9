// The device of csrc/torch/device.h under emulation: outputs and scratch memory stand between guard
// zones and hold NaN before the kernels run.
#include <memory>
#include <utility>

#include "core/defs.h"
#include "cuda/api.h"
#include "cuda/batch.h"
#include "cuda/classes.h"
#include "cuda/optim.h"
#include "cuda/pair_plan.h"
#include "cuda/pool.h"
#include "cuda/pooled.h"
#include "cuda/softmax.h"
#include "cuda/standardize.h"
#include "emulator.h"
#include "torch/device.h"
#include "torch/rows.h"

namespace bll::binding::device {

namespace {

// One of a single GPC, where clusters are as many as its processors hold.
cuda::Device device_of(int processors, int cluster, int64_t shared) {
  cuda::Device device{processors, cluster, shared};
  for (int i = 0; i < cuda::kClusterSizes; ++i) {
    for (int blocks = 1; blocks <= 2; ++blocks) {
      device.clusters[blocks - 1][i] = processors * blocks / (2 << i);
    }
  }
  return device;
}

// Few processors, so that blocks have to take several units.
cuda::Device machine = device_of(3, 1, 0);

constexpr size_t kZone = 256;

int64_t size_of(cpu::DType dtype) {
  return dtype == cpu::DType::kFloat32 ? 4 : dtype == cpu::DType::kFloat8 ? 1 : 2;
}

// Memory for `target` with the same address modulo 16.
class Guarded {
 public:
  Guarded(void* target, size_t bytes)
      : target_(target),
        bytes_(bytes),
        memory_(new unsigned char[bytes + 2 * kZone + 16]),
        start_(memory_.get() + kZone) {
    const auto wanted = reinterpret_cast<uintptr_t>(target) % 16;
    while (reinterpret_cast<uintptr_t>(start_) % 16 != wanted) ++start_;
    std::memset(memory_.get(), 0xff, bytes + 2 * kZone + 16);
  }

  void* data() const { return target_ == nullptr ? nullptr : start_; }

  void finish(const char* name) const {
    for (size_t i = 0; i < kZone; ++i) {
      if (start_[-1 - static_cast<int64_t>(i)] != 0xff || start_[bytes_ + i] != 0xff) {
        bll_emulator::Machine::fail(std::string("write outside ") + name);
      }
    }
    if (target_ != nullptr && bytes_ > 0) std::memcpy(target_, start_, bytes_);
  }

 private:
  void* target_;
  size_t bytes_;
  std::unique_ptr<unsigned char[]> memory_;
  unsigned char* start_;
};

}  // namespace

void pair_loss(const cpu::PairArgs& given, const Tensor& like) {
  cpu::PairArgs args = given;
  const int64_t latents = family_planes(args.family.id) * args.width;
  const bool per_row = args.reduction == cpu::Reduction::kNone;
  const size_t workspace = cuda::pair_workspace(args, machine);
  const Tensor scratch = new_empty(like, {static_cast<int64_t>(workspace) + 16}, ScalarType::Byte);
  const Guarded value(args.value, (per_row ? args.a.count : 1) * sizeof(float));
  const Guarded grad_a(args.grad_a, args.a.count * latents * size_of(args.a.dtype));
  const Guarded grad_b(args.grad_b, args.b.count * latents * size_of(args.b.dtype));
  const Guarded next(args.next, args.a.count * args.width * size_of(args.next_dtype));
  const Guarded memory(scratch.mutable_data_ptr(), workspace);
  args.value = value.data();
  args.grad_a = grad_a.data();
  args.grad_b = grad_b.data();
  args.next = next.data();
  const cudaError_t error = cuda::pair_loss(args, machine, memory.data(), nullptr);
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: error ", static_cast<int>(error));
  value.finish("the value");
  grad_a.finish("the gradient of a");
  grad_b.finish("the gradient of b");
  next.finish("the next block's input");
  memory.finish("the workspace");
}

namespace {

void class_loss(const cpu::ClassArgs& given, cuda::ClassPass pass, const Tensor& like) {
  STD_TORCH_CHECK(cuda::serves_classes(given), "class_loss: not served");
  cpu::ClassArgs args = given;
  const int64_t rows = args.a.count, classes = args.table.count;
  const bool per_row = args.reduction == cpu::Reduction::kNone;
  const size_t workspace = cuda::class_workspace(args, pass, machine);
  const Tensor scratch = new_empty(like, {static_cast<int64_t>(workspace) + 16}, ScalarType::Byte);
  const bool reads = pass == cuda::ClassPass::kGradients;
  const Guarded value(args.value, (per_row ? rows : 1) * sizeof(float));
  const Guarded residual(reads ? nullptr : args.residual, rows * classes * sizeof(float));
  const Guarded grad_a(args.grad_a, rows * args.width * size_of(args.a.dtype));
  const Guarded grad_table(args.grad_table, classes * args.width * size_of(args.table.dtype));
  const Guarded grad_bias(args.grad_bias, classes * sizeof(float));
  const Guarded memory(scratch.mutable_data_ptr(), workspace);
  args.value = value.data();
  if (!reads) args.residual = residual.data();
  args.grad_a = grad_a.data();
  args.grad_table = grad_table.data();
  args.grad_bias = grad_bias.data();
  const cudaError_t error = cuda::class_loss(args, pass, machine, memory.data(), nullptr);
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: error ", static_cast<int>(error));
  value.finish("the value");
  residual.finish("the residual");
  grad_a.finish("the gradient of a");
  grad_table.finish("the gradient of the table");
  grad_bias.finish("the gradient of the bias");
  memory.finish("the workspace");
}

}  // namespace

void class_loss_forward(const cpu::ClassArgs& args, const Tensor& like) {
  class_loss(args, cuda::ClassPass::kValue, like);
}

void class_loss_backward(const cpu::ClassArgs& args, const Tensor& like) {
  class_loss(args, cuda::ClassPass::kGradients, like);
}

void class_loss_both(const cpu::ClassArgs& args, const Tensor& like) {
  class_loss(args, cuda::ClassPass::kBoth, like);
}

void grid_pool_forward(const cpu::PoolArgs& given, const Tensor&) {
  cpu::PoolArgs args = given;
  const int64_t cells = args.batch * args.channels * args.grid * args.grid;
  const Guarded pooled(args.pooled, cells * sizeof(float));
  args.pooled = pooled.data();
  const cudaError_t error = cuda::grid_pool_forward(args, nullptr);
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: error ", static_cast<int>(error));
  pooled.finish("the pooled map");
}

void grid_pool_backward(const cpu::PoolArgs& given, const Tensor& like) {
  cpu::PoolArgs args = given;
  const int64_t pixels = args.batch * args.channels * args.height * args.width;
  const size_t workspace = cuda::pool_workspace(args);
  const Tensor scratch = new_empty(like, {static_cast<int64_t>(workspace) + 16}, ScalarType::Byte);
  const Guarded grad(args.grad_map, pixels * size_of(args.dtype));
  const Guarded memory(scratch.mutable_data_ptr(), workspace);
  args.grad_map = grad.data();
  const cudaError_t error = cuda::grid_pool_backward(args, memory.data(), nullptr);
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: error ", static_cast<int>(error));
  grad.finish("the gradient of the map");
  memory.finish("the workspace");
}

namespace {

void standardize(const cpu::StandardizeArgs& given, const Tensor& like,
                 decltype(cuda::standardize_forward)* door) {
  cpu::StandardizeArgs args = given;
  const size_t workspace = cuda::standardize_workspace(args, machine);
  const Tensor scratch = new_empty(like, {static_cast<int64_t>(workspace) + 16}, ScalarType::Byte);
  const Guarded out(args.out, args.rows * args.channels * args.cells * sizeof(float));
  const Guarded scale(args.scale, args.channels * sizeof(float));
  const Guarded memory(scratch.mutable_data_ptr(), workspace);
  args.out = out.data();
  args.scale = scale.data();
  const cudaError_t error = door(args, machine, memory.data(), nullptr);
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: error ", static_cast<int>(error));
  out.finish("the standardised rows");
  scale.finish("the scale");
  memory.finish("the workspace");
}

}  // namespace

void standardize_forward(const cpu::StandardizeArgs& args, const Tensor& like) {
  standardize(args, like, cuda::standardize_forward);
}

void standardize_backward(const cpu::StandardizeArgs& args, const Tensor& like) {
  standardize(args, like, cuda::standardize_backward);
}

void gram_loss(const cpu::GramArgs& given, const Tensor& like) {
  cpu::GramArgs args = given;
  const int64_t rows = args.x.count;
  const bool per_row = args.reduction == cpu::Reduction::kNone;
  const size_t workspace = cuda::gram_workspace(args, machine);
  const Tensor scratch = new_empty(like, {static_cast<int64_t>(workspace) + 16}, ScalarType::Byte);
  const Guarded value(args.value, (per_row ? rows : 1) * sizeof(float));
  const Guarded grad(args.grad_x, rows * args.width * size_of(args.x.dtype));
  const Guarded memory(scratch.mutable_data_ptr(), workspace);
  args.value = value.data();
  args.grad_x = grad.data();
  const cudaError_t error = cuda::gram_loss(args, machine, memory.data(), nullptr);
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: error ", static_cast<int>(error));
  value.finish("the value");
  grad.finish("the gradient of x");
  memory.finish("the workspace");
}

void class_means(const cpu::ClassMeansArgs& given, const Tensor& like) {
  cpu::ClassMeansArgs args = given;
  const size_t workspace = cuda::means_workspace(args, machine);
  const Tensor scratch = new_empty(like, {static_cast<int64_t>(workspace) + 16}, ScalarType::Byte);
  const Guarded means(args.means, args.classes * args.width * sizeof(float));
  const Guarded counts(args.counts, args.classes * sizeof(int64_t));
  const Guarded memory(scratch.mutable_data_ptr(), workspace);
  args.means = means.data();
  args.counts = static_cast<int64_t*>(counts.data());
  const cudaError_t error = cuda::class_means(args, machine, memory.data(), nullptr);
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: error ", static_cast<int>(error));
  means.finish("the means");
  counts.finish("the counts");
  memory.finish("the workspace");
}

void class_means_backward(const cpu::ClassMeansGradArgs& given, const Tensor&) {
  cpu::ClassMeansGradArgs args = given;
  const Guarded grad(args.grad_x, args.rows * args.width * sizeof(float));
  args.grad_x = grad.data();
  const cudaError_t error = cuda::class_means_backward(args, nullptr);
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: error ", static_cast<int>(error));
  grad.finish("the gradient of x");
}

void optim_step(const cuda::OptimTensor* tensors, int count, const cuda::OptimArgs& args,
                const Tensor&) {
  cudaError_t error = cudaSuccess;
  if (args.found != nullptr) error = cuda::optim_check(tensors, count, args, nullptr);
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: error ", static_cast<int>(error));
  error = cuda::optim_update(tensors, count, args, nullptr);
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: error ", static_cast<int>(error));
}

void softmax_rows(const cuda::SoftmaxRows& given, const Tensor&) {
  cuda::SoftmaxRows args = given;
  const int64_t size = args.rows * args.classes;
  const Guarded losses(args.losses, args.rows * sizeof(float));
  const bool in_place = args.slopes == static_cast<const void*>(args.scores);
  const Guarded slopes(in_place ? nullptr : args.slopes, size * size_of(args.slopes_dtype));
  args.losses = static_cast<float*>(losses.data());
  if (!in_place) args.slopes = slopes.data();
  const cudaError_t error = cuda::softmax_rows(args, nullptr);
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: error ", static_cast<int>(error));
  losses.finish("the losses");
  slopes.finish("the slopes");
}

void pooled_class_loss(const cpu::ClassArgs& given, const cpu::PoolArgs& given_pool,
                       float* given_cells, const Tensor& like) {
  STD_TORCH_CHECK(cuda::serves_pooled(given, given_pool), "pooled_class_loss: not served");
  cpu::ClassArgs args = given;
  cuda::PooledMap map{given_pool, given_cells};
  const cpu::PoolArgs& pool = given_pool;
  const int64_t rows = pool.batch, classes = args.table.count;
  const int64_t pixels = rows * pool.channels * pool.height * pool.width;
  const bool per_row = args.reduction == cpu::Reduction::kNone;
  const size_t workspace = cuda::pooled_workspace(args, map, machine);
  const Tensor scratch = new_empty(like, {static_cast<int64_t>(workspace) + 16}, ScalarType::Byte);
  const Guarded value(args.value, (per_row ? rows : 1) * sizeof(float));
  const Guarded grad_map(pool.grad_map, pixels * size_of(pool.dtype));
  const Guarded grad_cells(given_cells, rows * args.width * sizeof(float));
  const Guarded grad_table(args.grad_table, classes * args.width * size_of(args.table.dtype));
  const Guarded grad_bias(args.grad_bias, classes * sizeof(float));
  const Guarded memory(scratch.mutable_data_ptr(), workspace);
  args.value = value.data();
  args.grad_table = grad_table.data();
  args.grad_bias = grad_bias.data();
  map.pool.grad_map = grad_map.data();
  map.grad_cells = static_cast<float*>(grad_cells.data());
  const cudaError_t error = cuda::pooled_class_loss(args, map, machine, memory.data(), nullptr);
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: error ", static_cast<int>(error));
  value.finish("the value");
  grad_map.finish("the gradient of the map");
  grad_cells.finish("the gradient of the cells");
  grad_table.finish("the gradient of the table");
  grad_bias.finish("the gradient of the bias");
  memory.finish("the workspace");
}

}  // namespace bll::binding::device

// For tests, by ctypes.
extern "C" {

__attribute__((visibility("default"))) void bll_emulator_set(int order, int processors, int cluster,
                                                             int64_t shared) {
  bll_emulator::Machine::get().order = order;
  bll::binding::device::machine = bll::binding::device::device_of(processors, cluster, shared);
}

// Launches, blocks, barriers, shuffles, bytes loaded and stored, and special functions since the
// last call.
__attribute__((visibility("default"))) void bll_emulator_counts(int64_t (&out)[7]) {
  auto& counts = bll_emulator::Machine::get().counts;
  out[0] = counts.launches, out[1] = counts.blocks, out[2] = counts.barriers;
  out[3] = counts.shuffles, out[4] = counts.loaded;
  out[5] = std::exchange(bll_emulator::stored, 0);
  out[6] = std::exchange(bll_emulator::special_functions, 0);
  counts = {};
}

}  // extern "C"

// The launch table of a pair loss, where `clusters` as in cuda::Device run at once: flat, rows,
// width, tail, count, lanes, chunks, units, blocks, values per row, two stages, sections, sort
// chunks, tier, lanes of a group, wide groups, blocks of a cluster, vectors that a thread keeps,
// bytes of shared memory, groups of a row side by side in a block of the table kernel, its blocks,
// the most shared memory of any plan.
extern "C" __attribute__((visibility("default"))) void bll_emulator_plan(
    int family, int dtype, int64_t rows, int64_t width, int64_t group, int64_t classes, int per_row,
    int processors, int cluster, int64_t shared, const int (&clusters)[2][3], int64_t (&out)[22]) {
  using namespace bll;
  alignas(16) static char memory[16];
  cpu::PairArgs args{};
  args.family = {static_cast<FamilyId>(family), group, 1, 1};
  args.loss = Loss::kEvidence;
  args.reduction = per_row != 0 ? cpu::Reduction::kNone : cpu::Reduction::kSum;
  args.width = width;
  const int64_t row = width * family_planes(args.family.id);
  const int64_t plane = family_planes(args.family.id) > 1 ? width : 0;
  args.a = {memory, static_cast<cpu::DType>(dtype), rows, row, plane, nullptr};
  args.b = args.a;
  args.grad_a = args.grad_b = args.value = memory;
  static const int64_t label = 0;
  if (classes > 0) args.labels = &label, args.b.count = classes;
  cuda::Device device{processors, cluster, shared};
  std::memcpy(device.clusters, clusters, sizeof clusters);
  const cuda::PairPlan p = cuda::plan_pair(args, device);
  const int64_t numbers[22] = {p.flat,          p.rows,
                               p.width,         p.tail,
                               p.layout.count,  p.layout.lanes,
                               p.layout.chunks, p.units,
                               p.blocks,        p.values_per_row,
                               p.two_stages,    p.sections,
                               p.sort_chunks,   p.group.tier,
                               p.group.lanes,   p.group.wide,
                               p.group.cluster, p.group.kept,
                               p.group.shared,  p.group.across,
                               p.table_blocks,  p.group.most_shared};
  std::memcpy(out, numbers, sizeof numbers);
}
