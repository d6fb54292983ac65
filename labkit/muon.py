"""Muon: momentum for weight matrices, with the update made orthogonal."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Coefficients of the quintic iteration that drives every singular value towards 1 in five rounds:
# Keller Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, rounds: int = 5) -> Tensor:
    """Return the matrix with all singular values moved close to 1, in float32.

    Args:
        matrix: `(rows, columns)`.
        rounds: Newton–Schulz iterations; five leave the singular values in about 0.7…1.2.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix / (matrix.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T  # the smaller product: (rows, rows)
    for _ in range(rounds):
        gram = wide @ wide.T
        wide = a * wide + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """Nesterov momentum for convolution filters, each update orthogonalized.

    All directions of a layer then move by the same amount, not only those with large gradients.
    Every layer's weights are kept at a fixed norm, because the batch norm behind it undoes their
    scale: the learning rate is therefore relative, 0.1 turns the weights by about 0.1 per step.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every filter once; gradients must have been computed."""
        if closure is not None:
            raise NotImplementedError("Muon takes no closure: call backward() before step()")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].mul_(group["momentum"]).add_(weight.grad)
                ahead = weight.grad.add(momentum, alpha=group["momentum"])
                update = orthogonalize(ahead.reshape(len(ahead), -1)).reshape(weight.shape)
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                weight.add_(update, alpha=-group["lr"])
