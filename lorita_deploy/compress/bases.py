"""What has become of the outputs of a layer that was narrowed: fewer of them, or other directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from .moments import Moments


class Basis(Protocol):
    """From the dense layer's outputs y (m,) to the narrowed one's (k,)."""

    def outputs(self, values: Tensor) -> Tensor:
        """``values (rows, m)`` to (rows, k)."""

    def moments(self, moments: Moments) -> Moments:
        """Of the narrowed layer."""


@dataclass(frozen=True)
class Kept:
    """The channels that are left."""

    channels: Sequence[int]

    def outputs(self, values: Tensor) -> Tensor:
        return values[:, list(self.channels)]

    def moments(self, moments: Moments) -> Moments:
        index = list(self.channels)
        return replace(
            moments,
            mean=moments.mean[index],
            covariance=moments.covariance[index][:, index],
            gradient=moments.gradient[index][:, index],
        )


@dataclass(frozen=True)
class Turned:
    """``matrix`` (y - ``shift``)."""

    matrix: Tensor
    """(k, m), float64 on the CPU."""
    shift: Tensor
    """(m,) a constant that was moved elsewhere."""

    def outputs(self, values: Tensor) -> Tensor:
        found: Tensor = (values - self.shift.to(values)) @ self.matrix.to(values).T
        return found

    def moments(self, moments: Moments) -> Moments:
        """Gradients are those at the outputs that the narrowed ones stand for, y = matrix^+ z."""
        import torch

        M, back = self.matrix, torch.linalg.pinv(self.matrix)
        return replace(
            moments,
            mean=(M @ (moments.mean.double() - self.shift)).float(),
            covariance=(M @ moments.covariance.double() @ M.T).float(),
            gradient=(back.T @ moments.gradient.double() @ back).float(),
        )
