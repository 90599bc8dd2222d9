// Sweeps over the latents of a categorical group: they find its statistics, then value and
// gradients follow per latent. Where the latents are, and which threads share them, is the choice
// of the kernel.
#pragma once

#include <type_traits>

#include "cuda/block.h"
#include "cuda/group_latents.cuh"
#include "cuda/groups.h"
#include "cuda/pair_items.cuh"
#include "cuda/team.h"
#include "losses/pair.h"

namespace bll::cuda {

// Latents: by value, or a reference to what outlives the group.
template <class Access, class Latents, class Threads>
class GroupSweeps {
 public:
  static constexpr bool kSums = std::remove_reference_t<Latents>::kSums;
  using Family = Categorical<float>;
  static constexpr int kCount = Access::kCount;

  __device__ __forceinline__ GroupSweeps(const Family& family, const GroupView& view,
                                         const GroupPlace& place, Threads& team,
                                         const Latents& latents = {})
      : family_(family), view_(view), place_(place), team_(team), latents_(latents) {
    latents_.load(view.pair, place);
  }

  // All that value and gradients are made of.
  template <Loss L>
  __device__ __forceinline__ void find() {
    find_range();
    find_prior<L>();
    find_tilt();
  }

  template <Loss L>
  __device__ __forceinline__ float value() const {
    return form_ == Family::Form::kDirect ? family_.template value<L>(range_, prior_, posterior_)
                                          : family_.template value<L>(range_, prior_, tilted_);
  }

  template <Loss L>
  __device__ __forceinline__ void store_gradients(float factor) const {
    const PairView& v = view_.pair;
    const bool sums = kReachesMessage<L> && kSums;
    if (!sums && v.grad_a == nullptr && v.grad_b == nullptr && v.next == nullptr) return;
    if (form_ == Family::Form::kNarrow) {
      store<L>(factor, [&](float a, float b) { return tilted_element<L, true>(a, b); });
    } else if (form_ == Family::Form::kTilt) {
      store<L>(factor, [&](float a, float b) { return tilted_element<L, false>(a, b); });
    } else {
      store<L>(factor, [&](float a, float b) { return direct_element<L>(a, b); });
    }
  }

 private:
  const Family& family_;
  const GroupView& view_;
  const GroupPlace& place_;
  Threads& team_;
  Latents latents_;
  typename Family::Range range_;
  typename Family::Prior prior_;
  typename Family::Form form_;
  typename Family::Tilt tilted_;
  typename Family::Posterior posterior_;

  __device__ __forceinline__ void find_range() {
    float most[3] = {-HUGE_VALF, -HUGE_VALF, -HUGE_VALF};  // of a, of b, of -b
    float anchor[1] = {-HUGE_VALF};
    latents_.each(view_.pair, place_,
                  [&](const float (&a)[kCount], const float (&b)[kCount], int, int64_t) {
#pragma unroll
                    for (int i = 0; i < kCount; ++i) {
                      const bool above = a[i] > most[0], level = a[i] == most[0];
                      if (above || (level && b[i] > anchor[0])) anchor[0] = b[i];
                      most[0] = above ? a[i] : most[0];
                      most[1] = Largest::combine(b[i], most[1]);
                      most[2] = Largest::combine(-b[i], most[2]);
                    }
                  });
    const float own = most[0];
    team_.template reduce<Largest>(most);
    if (own != most[0]) anchor[0] = -HUGE_VALF;
    team_.template reduce<Largest>(anchor);
    range_ = {most[0], most[1], -most[2], Family::origin(anchor[0]), -HUGE_VALF};
  }

  template <Loss L>
  __device__ __forceinline__ void find_prior() {
    float sums[2] = {0, 0}, most[1] = {-HUGE_VALF};
    latents_.each(view_.pair, place_,
                  [&](const float (&a)[kCount], const float (&b)[kCount], int, int64_t) {
#pragma unroll
                    for (int i = 0; i < kCount; ++i) {
                      const float weight = exp_nonpositive(a[i] - range_.max_a);
                      sums[0] += weight;
                      sums[1] += family_.weighted(weight, family_.message(range_, b[i]));
                      most[0] = Largest::combine(family_.logit(range_, a[i], b[i]), most[0]);
                    }
                  });
    team_.template reduce<Sum>(sums);
    team_.template reduce<Largest>(most);
    range_.max_r = most[0];
    prior_ = {1 / sums[0], sums[1] / sums[0]};
    form_ = family_.form(range_, prior_);
    if (form_ == Family::Form::kDirect) prior_ = Family::template direct<L>(prior_);
  }

  __device__ __forceinline__ void find_tilt() {
    float sums[3] = {0, 0, 0};
    if (form_ == Family::Form::kNarrow) {
      add_tilt<true>(sums);
    } else if (form_ == Family::Form::kTilt) {
      add_tilt<false>(sums);
    } else {
      add_posterior(sums);
    }
    team_.template reduce<Sum>(sums);
    tilted_ = {sums[0] * prior_.inverse_z, sums[1] * prior_.inverse_z, sums[2] * prior_.inverse_z};
    posterior_ = {1 / sums[0], sums[1] / sums[0]};
  }

  template <bool Narrow>
  __device__ __forceinline__ void add_tilt(float (&sums)[3]) const {
    latents_.each(view_.pair, place_,
                  [&](const float (&a)[kCount], const float (&b)[kCount], int, int64_t) {
#pragma unroll
                    for (int i = 0; i < kCount; ++i) {
                      const float weight = exp_nonpositive(a[i] - range_.max_a);
                      const float c = family_.message(range_, b[i]) - prior_.centre;
                      const auto growth = Family::template growth<Narrow>(c);
                      sums[0] += weight * growth.rest;
                      sums[1] += weight * (growth.x * c);
                      sums[2] += weight * growth.gap;
                    }
                  });
  }

  __device__ __forceinline__ void add_posterior(float (&sums)[3]) const {
    latents_.each(
        view_.pair, place_, [&](const float (&a)[kCount], const float (&b)[kCount], int, int64_t) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) {
            const float r = family_.logit(range_, a[i], b[i]);
            const float weight = exp_nonpositive(r - range_.max_r);
            sums[0] += weight;
            sums[1] += family_.weighted(weight, family_.message(range_, b[i]) - prior_.centre);
          }
        });
  }

  template <Loss L, bool Narrow>
  __device__ __forceinline__ PairTerms<float, 1> tilted_element(float a, float b) const {
    const float p = exp_nonpositive(a - range_.max_a) * prior_.inverse_z;
    const float c = family_.message(range_, b) - prior_.centre;
    return Family::template element<L, Narrow>(p, c, tilted_);
  }

  template <Loss L>
  __device__ __forceinline__ PairTerms<float, 1> direct_element(float a, float b) const {
    const float p = exp_nonpositive(a - range_.max_a) * prior_.inverse_z;
    const float r = family_.logit(range_, a, b);
    const float rho = exp_nonpositive(r - range_.max_r) * posterior_.inverse_z;
    const float c = family_.message(range_, b) - prior_.centre;
    return Family::template element<L>(p, rho, c, posterior_);
  }

  // Probabilities under alpha and rho, mixed.
  __device__ __forceinline__ void store_next(const float (&a)[kCount], const float (&b)[kCount],
                                             int64_t column) const {
    const PairView& v = view_.pair;
    const bool direct = form_ == Family::Form::kDirect;
    float means[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      means[i] = 0;
      if (v.mix.alpha != 0) {
        means[i] = v.mix.alpha * (exp_nonpositive(a[i] - range_.max_a) * prior_.inverse_z);
      }
      if (v.mix.rho != 0) {
        const float message = family_.message(range_, b[i]);
        // One exponent: alpha's probability may vanish where the message brings it back.
        const float above = direct ? a[i] + message - range_.max_r
                                   : a[i] - range_.max_a + (message - prior_.centre);
        const float scale = direct ? posterior_.inverse_z : prior_.inverse_z / (1 + tilted_.excess);
        means[i] += v.mix.rho * (exp_any(above) * scale);
      }
    }
    store_means(v.next, v.next_dtype, place_.out + column, means);
  }

  template <Loss L, class Element>
  __device__ __forceinline__ void store(float factor, Element&& element) const {
    const PairView& v = view_.pair;
    const float factor_b = factor * family_.tilt;
    latents_.each(v, place_,
                  [&](const float (&a)[kCount], const float (&b)[kCount], int k, int64_t column) {
                    if (v.next != nullptr) store_next(a, b, column);
                    float grad_a[kCount], grad_b[kCount];
#pragma unroll
                    for (int i = 0; i < kCount; ++i) {
                      const PairTerms<float, 1> terms = element(a[i], b[i]);
                      grad_a[i] = factor * terms.a[0];
                      grad_b[i] = factor_b * terms.b[0];
                    }
                    if (v.grad_a != nullptr)
                      Access::store(v.grad_a, v.a_dtype, place_.out + column, grad_a);
                    if constexpr (kReachesMessage<L> && kSums) {
                      latents_.add(v, k, column, grad_b);
                    } else if (kReachesMessage<L> && v.grad_b != nullptr) {
                      Access::store(v.grad_b, v.b_dtype, place_.out + column, grad_b);
                    }
                  });
  }
};

// Of the group `number`, one of row `row`, which meets the message in `b_row` (-1: in none).
__device__ __forceinline__ GroupPlace place_of_group(const GroupView& v, int64_t number,
                                                     int64_t row, int64_t b_row, int first,
                                                     int step) {
  GroupPlace place;
  const int64_t column = (number - row * v.groups_per_row) * v.group;
  place.a = row * v.pair.a_row + column;
  place.b = b_row < 0 ? -1 : b_row * v.pair.b_row + column;
  place.out = row * v.pair.width + column;
  place.group = v.group;
  place.first = first;
  place.step = step;
  place.inside = true;
  return place;
}

// Values of a block's groups. One thread of a group adds its value, which has a place of its own or
// joins the block's.
class GroupValues {
 public:
  __device__ __forceinline__ explicit GroupValues(const GroupView& view) : view_(view) {}

  template <Loss L, class Sweeps>
  __device__ __forceinline__ void add(const Sweeps& sweeps, int64_t number, float weight) {
    if (view_.pair.value == nullptr) return;
    const float value = weight * sweeps.template value<L>();
    if (view_.per_row) view_.pair.value[number] = value;
    sum_ += value;
  }

  // By all threads; `shared` has a float per warp.
  __device__ __forceinline__ void store(float* shared) const {
    if (view_.pair.value == nullptr || view_.per_row) return;
    __syncthreads();
    const float sum = block_sum(sum_, shared);
    if (threadIdx.x == 0) view_.pair.value[blockIdx.x] = view_.pair.value_scale * sum;
  }

 private:
  const GroupView& view_;
  float sum_ = 0;
};

}  // namespace bll::cuda
