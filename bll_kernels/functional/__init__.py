"""The public functions on tensors: block-local losses, each with a value-and-gradient twin.

Notation of docs/method.md: `a` holds the parameters of the forward message alpha, `b` those of
the feedback message beta, rho ~ alpha * beta is the posterior, A the log-partition. Latents stand
on the last dimension, everything before it is batch; a row is one batch entry.

Shared by all functions:

- dtypes float64, float32, bfloat16, float16; half types accumulate in float32. The value is
  float32 (float64 for float64). `b` or `table` may be float32 beside a half-precision `a`.
- ``reduction``: ``"none"`` gives one value per row, summed over latents; ``"sum"``; and
  ``"batchmean"`` divides the sum by the number of rows. An empty batch gives 0.
- ``weight``: a constant factor per row; ``tilt``: the power that beta is raised to.
- ``pool=(kind, g)``: `a` is a map [B, C, H, W], pooled to C * g * g latents first (`grid_pool`).
- ``next_input`` of the pair losses' twins: the next block's input in the same pass.
- The loss functions are differentiable once; the ``_value_and_grad`` twins keep no graph and
  return the gradients of the reduced value (of the sum for ``"none"``) in the order of ``wrt``.
"""

from bll_kernels.functional.classes import (
    class_evidence_loss,
    class_evidence_loss_value_and_grad,
    linear_cross_entropy,
    linear_cross_entropy_value_and_grad,
)
from bll_kernels.functional.gram import gram_loss, gram_loss_value_and_grad
from bll_kernels.functional.means import class_means
from bll_kernels.functional.pair import evidence_loss, posterior_kl
from bll_kernels.functional.pair_grad import (
    evidence_loss_value_and_grad,
    posterior_kl_value_and_grad,
)
from bll_kernels.functional.pooling import grid_pool
from bll_kernels.functional.standardize import standardize_channels

__all__ = [
    "class_evidence_loss",
    "class_evidence_loss_value_and_grad",
    "class_means",
    "evidence_loss",
    "evidence_loss_value_and_grad",
    "gram_loss",
    "gram_loss_value_and_grad",
    "grid_pool",
    "linear_cross_entropy",
    "linear_cross_entropy_value_and_grad",
    "posterior_kl",
    "posterior_kl_value_and_grad",
    "standardize_channels",
]
