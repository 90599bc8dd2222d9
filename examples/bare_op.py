"""The loss alone: value and gradient in one pass, beside the autograd formula it replaces."""

import torch
from torch.nn.functional import softplus

import bll_kernels

torch.manual_seed(0)
a = torch.randn(256, 4096, requires_grad=True)  # logits of the forward message, a row per sample
table = torch.randn(10, 4096) * 0.05  # one feedback message per class
y = torch.randint(0, 10, (256,))
loss, (grad,) = bll_kernels.posterior_kl_value_and_grad(a.detach(), table, "bernoulli", labels=y)
rho = (a + table[y]).detach()  # the posterior, held constant
kl = (rho.sigmoid() * (rho - a) - softplus(rho) + softplus(a)).sum() / len(y)
(expected,) = torch.autograd.grad(kl, a)
error = (grad - expected).norm() / expected.norm()
print(f"loss {loss:.6f}, by autograd {kl:.6f}; gradients differ by {error:.1e} of their norm")
