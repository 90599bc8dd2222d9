"""The loss alone: value and gradient in one pass, beside the autograd formula it replaces."""

import torch
import torch.nn.functional as F

import bll_kernels

torch.manual_seed(0)
a = torch.randn(256, 4096)  # logits of the forward message, one row per sample
table = torch.randn(10, 4096) * 0.05  # one feedback message per class
labels = torch.randint(0, 10, (256,))

loss, (grad,) = bll_kernels.posterior_kl_value_and_grad(a, table, "bernoulli", labels=labels)

logits = a.clone().requires_grad_()
posterior = (logits + table[labels]).detach()  # held constant
mean = posterior.sigmoid()
kl = mean * (posterior - logits) - F.softplus(posterior) + F.softplus(logits)
by_autograd = kl.sum() / len(labels)
(expected,) = torch.autograd.grad(by_autograd, logits)

error = (grad - expected).norm() / expected.norm()
print(
    f"loss {loss:.6f}, by autograd {by_autograd:.6f}; gradients differ by {error:.1e} of their norm"
)
