// The losses between a forward message alpha and a feedback message beta (docs/method.md).
#pragma once

namespace bll {

// rho is the posterior alpha * beta; a stopped loss holds rho constant.
enum class Loss : int {
  kKl,             // KL(rho || alpha), stopped
  kKlFull,         // KL(rho || alpha), the whole gradient
  kReverseKl,      // KL(alpha || rho), stopped
  kReverseKlFull,  // KL(alpha || rho), the whole gradient
  kEvidence,       // -log E_alpha[beta]
};

inline constexpr int kLossCount = 5;

// A stopped loss sends nothing to the feedback message.
constexpr bool reaches_message(Loss loss) { return loss != Loss::kKl && loss != Loss::kReverseKl; }

}  // namespace bll
