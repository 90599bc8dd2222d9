"""Schemas of the registered ops: what every backend has, and what only the CUDA library has."""

from __future__ import annotations

from typing import Final

_PAIR = "Tensor a, Tensor b, Tensor? labels, Tensor? weight, str family, int group, float tau, "
_PAIR += "str loss, float tilt, str reduction"
_CLASS = "Tensor a, Tensor table, Tensor labels, Tensor? bias, Tensor? weight, str family, "
_CLASS += "int group, float tau, bool normalize_message, float tilt, str reduction"
_CLASS_BACKWARD = "Tensor grad, Tensor residual, Tensor a, Tensor table, str family, int group, "
_CLASS_BACKWARD += "float tau, bool normalize_message, float tilt"
_CLASS_NEEDS = "bool need_a, bool need_table, bool need_bias"
_POOLED = "Tensor x, Tensor table, Tensor labels, Tensor? bias, Tensor? weight, str family, "
_POOLED += "float tau, bool normalize_message, float tilt, str reduction, int grid, bool need_x, "
_POOLED += "bool compact, bool need_table, bool need_bias"
_GRAM = "Tensor x, Tensor? labels, Tensor? vectors, Tensor? weight, float same, float other, "
_GRAM += "bool center, str reduction"

SCHEMAS: Final = {
    "pair_loss": f"({_PAIR}) -> Tensor",
    "pair_loss_backward": f"(Tensor grad, {_PAIR}, bool need_a, bool need_b) -> (Tensor, Tensor)",
    "pair_loss_value_and_grad": f"({_PAIR}, bool need_a, bool need_b) -> (Tensor, Tensor, Tensor)",
    "pair_loss_next": f"({_PAIR}, bool need_a, bool need_b, float mix, ScalarType next_dtype) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "class_loss": f"({_CLASS}) -> (Tensor, Tensor)",
    "class_loss_backward": f"({_CLASS_BACKWARD}, {_CLASS_NEEDS}) -> (Tensor, Tensor, Tensor)",
    "class_loss_value_and_grad": f"({_CLASS}, {_CLASS_NEEDS}) -> (Tensor, Tensor, Tensor, Tensor)",
    "pooled_class_loss_value_and_grad": f"({_POOLED}) -> (Tensor, Tensor, Tensor, Tensor)",
    "softmax_rows": "(Tensor scores, Tensor labels, Tensor? offset, Tensor? weight, "
    "Tensor(a!) slopes) -> Tensor",
    "gram_loss": f"({_GRAM}) -> Tensor",
    "gram_loss_backward": f"(Tensor grad, {_GRAM}) -> Tensor",
    "gram_loss_value_and_grad": f"({_GRAM}) -> (Tensor, Tensor)",
    "class_means": "(Tensor x, Tensor labels, int classes) -> (Tensor, Tensor)",
    "class_means_backward": "(Tensor grad, Tensor labels, Tensor counts) -> Tensor",
    "grid_pool": "(Tensor x, str kind, int grid) -> Tensor",
    "grid_pool_backward": "(Tensor grad, Tensor x, str kind, int grid) -> Tensor",
    "standardize_channels": "(Tensor x, int channels, float eps) -> (Tensor, Tensor)",
    "standardize_channels_backward": "(Tensor grad, Tensor standardized, Tensor scale) -> Tensor",
}

#: Ops that only the CUDA library has: what CPU tensors get from torch itself.
CUDA_SCHEMAS: Final = {
    "block_adam_": "(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] first, "
    "Tensor(c!)[] second, Tensor(d!) steps, Tensor(e!) ticket, Tensor? lr_tensor, "
    "Tensor? inverse_scale, Tensor(f!)? found_inf, float lr, float beta1, float beta2, float eps, "
    "float weight_decay, bool decoupled) -> ()",
    "block_sgd_": "(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] momenta, "
    "Tensor? lr_tensor, Tensor? inverse_scale, Tensor(f!)? found_inf, float lr, float momentum, "
    "float weight_decay, bool nesterov) -> ()",
}
