"""Multi-layer perceptrons, of which policies and critics are made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spinup.fast import nodes


class StackedLinear(nn.Module):
    """Several linear layers of one shape, evaluated as one batched matrix product.

    The input has shape ``(batch, in_features)``, shared by all layers, or
    ``(num_stacked, batch, in_features)``. The output has shape
    ``(num_stacked, batch, out_features)``. Each layer is initialised as an ``nn.Linear``.

    Args:
        num_stacked: number of layers.
        in_features, out_features: features of the input and the output of each layer.
    """

    def __init__(self, num_stacked: int, in_features: int, out_features: int):
        super().__init__()
        layers = [nn.Linear(in_features, out_features) for _ in range(num_stacked)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(len(self.weight), -1, -1) if x.dim() == 2 else x
        return torch.baddbmm(self.bias, x, self.weight.transpose(1, 2))


class MLP(nn.Sequential):
    """Linear layers with activations between them.

    If all activations are ReLU, Tanh or Identity and no layer is modified (by a hook, for example),
    the network is one node of the autograd graph: the same results with less overhead.
    """

    def forward(self, *inputs: Tensor) -> Tensor:
        """Evaluates the network.

        Args:
            *inputs: one or several tensors ``(batch, features)``, which are concatenated;
                ``(features,)`` for a single observation.
        """
        if inputs[0].dim() == 1:
            return MLP.forward(self, *[x[None] for x in inputs]).squeeze(-2)
        if nodes.ENABLED and self.is_plain:
            return nodes.mlp(inputs, list(self))
        return super().forward(torch.cat(inputs, dim=-1))

    def first(self, *inputs: Tensor) -> Tensor:
        """Evaluates only the first network of a stack, with outputs ``(batch, features)``."""
        if nodes.ENABLED and self.is_plain and not nodes.is_changed(self):
            return nodes.mlp(inputs, list(self), first=True)
        return self(*inputs)[0]

    @property
    def is_plain(self) -> bool:
        """True if linear layers and known activations alternate, and none is modified."""
        return nodes.are_plain(list(self), (nn.Linear, StackedLinear))


def mlp(
    sizes: Sequence[int],
    activation: type[nn.Module],
    output_activation: type[nn.Module] = nn.Identity,
    num_stacked: int | None = None,
) -> MLP:
    """Builds a multi-layer perceptron.

    Args:
        sizes: number of features of the input, each hidden layer, and the output.
        activation: class of the activation after each hidden layer, such as ``nn.Tanh``.
        output_activation: class of the activation after the last layer.
        num_stacked: number of networks to build as one stack (`StackedLinear`). If None, build a
            single network.
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        if num_stacked is None:
            layers.append(nn.Linear(n_in, n_out))
        else:
            layers.append(StackedLinear(num_stacked, n_in, n_out))
        layers.append(activation() if i < len(sizes) - 2 else output_activation())
    return MLP(*layers)


def beside(module, x):
    """Returns `x` on the device of a module's parameters."""
    return x.to(next(module.parameters()).device)
