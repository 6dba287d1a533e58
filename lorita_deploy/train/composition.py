"""LoRITa: every weight trained as a product of N matrices with nothing between them.

With W the (m, n) matrix of a layer (m outputs, n = inputs * kernel size) and k = min(m, n),

    W = P_1 ... P_{N-1} V    (m <= n)        W = V P_1 ... P_{N-1}    (m > n)

where the *squares* P are (k, k) and the *wide* factor V has the shape of the weight. Plain weight decay on the factors
then acts on the product as the Schatten quasi-norm N * sum_j s_j^(2/N) (arXiv 2405.03089; METHOD "Training"), which
makes the weight low-rank. Whoever asks for the weight gets it composed; the layer's own forward pass multiplies in the
order that is cheapest for its batch (order.py). Taking the parametrization off again is the exact collapse.

`factorize` and `collapse` work in place on any ``nn.Module``, inside anybody's training loop.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from ..networks import computes_only_its_matrix
from ..records import LeftAlone
from . import order
from .gates import remove_gates
from .kept import Kept

RANK_DEFICIENT = 1e-6
"""Singular values below this share of the largest are rounding noise of a float32 weight."""


class Composition(nn.Module):
    """The parametrization: factors in, weight out. The parameters are ``original0`` = V and ``original1...`` = P_1 ..."""

    def __init__(self, depth: int, init_jitter: float) -> None:
        super().__init__()
        self.depth = depth
        self.init_jitter = init_jitter
        self.kept = Kept()

    def forward(self, wide: Tensor, *squares: Tensor) -> Tensor:
        """The weight, in the shape, type and memory format of ``wide``; multiplied in float32, also under autocast."""
        return self.kept.get("weight", self._weight, (wide, *squares))

    def square(self, *squares: Tensor) -> Tensor:
        """P_1 ... P_{N-1} (k, k), multiplied in float32, in the type of the squares."""
        if len(squares) == 1:
            return squares[0]
        return self.kept.get("square", self._square, squares)

    def _square(self, *squares: Tensor) -> Tensor:
        with torch.autocast(squares[0].device.type, enabled=False):
            return self._product(*squares).to(squares[0].dtype)

    @staticmethod
    def _product(*squares: Tensor) -> Tensor:
        exact = torch.promote_types(squares[0].dtype, torch.float32)
        product = squares[0].to(exact)
        for square in squares[1:]:
            product = product @ square.to(exact)
        return product

    def _weight(self, wide: Tensor, *squares: Tensor) -> Tensor:
        with torch.autocast(wide.device.type, enabled=False):
            exact = torch.promote_types(wide.dtype, torch.float32)
            product = self._product(*squares)  # squares first: (N-2) k^3 + k m n multiplications, the cheapest order
            # Seen as (out, kh, kw, in), a channels-last weight is a matrix without a copy, and so is the result.
            channels_last = _is_channels_last(wide)
            if _squares_on_the_left(wide):
                rows = wide.permute(0, 2, 3, 1) if channels_last else wide
                weight = (product @ rows.to(exact).flatten(1)).view(rows.shape)
                weight = weight.permute(0, 3, 1, 2) if channels_last else weight
            else:
                weight = (wide.to(exact).flatten(1) @ product).view(wide.shape)
                weight = weight.contiguous(memory_format=torch.channels_last) if channels_last else weight
            return weight.to(wide.dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The balanced factors of ``weight``: singular values s^(1/N) in each, so the decay is the Schatten penalty at once.

        With W = U diag(s) Z^T (m <= n) the squares are U diag(q) U^T, q = s^(1/N), and V = U diag(q^(1-N)) U^T W, which
        gives W back for any q. A direction that W lacks would be a stationary point with q = 0 and never learn, so there
        q is lifted: to (``init_jitter`` * s_max)^(1/N), or, for a zero weight, to what torch's default initialisation
        has (root mean square). V stays (nearly) zero there: the function does not change, the gradient does not vanish.
        """
        matrix = weight.detach().flatten(1).double()
        m, n = matrix.shape
        left = _squares_on_the_left(weight)
        gram = matrix @ matrix.T if left else matrix.T @ matrix
        s2, U = torch.linalg.eigh(gram)
        s = s2.clamp(min=0).sqrt()
        largest = float(s.max())
        lifted = self.init_jitter * largest if largest > 0 else (max(m, n) / (3 * n)) ** 0.5
        q = torch.where(s > RANK_DEFICIENT * largest, s, lifted).pow(1 / self.depth)
        square = (U * q) @ U.T
        inverse = (U * q.pow(1 - self.depth)) @ U.T
        wide = torch.empty_like(weight, requires_grad=False)  # keeps the memory format
        wide.copy_((inverse @ matrix if left else matrix @ inverse).view(weight.shape))
        return wide, *(square.to(weight.dtype) for _ in range(self.depth - 1))


def _squares_on_the_left(weight: Tensor) -> bool:
    """Squares go on the smaller side: an inner width of min(m, n) is all that the penalty needs."""
    return weight.shape[0] <= weight[0].numel()


def _is_channels_last(weight: Tensor) -> bool:
    return weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)


def factorize(model: nn.Module, n: int = 3, *, init_jitter: float = 0.1) -> nn.Module:
    """Give every Linear, Conv1d and Conv2d of ``model`` a weight that is the product of ``n`` factors, in place.

    The function that the model computes stays the same (to rounding); ``n=1`` leaves plain weights. Layers that
    `left_alone` lists are not touched. ``init_jitter`` is the share of the largest singular value at which directions
    that a weight lacks start (see `Composition.right_inverse`). Returns ``model``. Raises ``ValueError`` for ``n < 1`` and for
    a model that is factored already.
    """
    if n < 1:
        raise ValueError(f"n = {n}: a weight is the product of at least one factor")
    if factored_layers(model):
        raise ValueError("the model is factored already; collapse() it first")
    if n > 1:
        for layer in _suitable(model).values():
            parametrize.register_parametrization(layer, "weight", Composition(n, init_jitter))
            if computes_only_its_matrix(layer):
                type(layer).forward = order.forward  # type: ignore[method-assign]  # a class made for this one layer
    return model


def collapse(model: nn.Module, *, gates: bool = True) -> nn.Module:
    """Multiply the factors out into plain weights, in place: exact, with the names and order of the plain model.

    So are the ``gates`` of batch norms. Returns ``model``.
    """
    if gates:
        remove_gates(model)
    for layer in factored_layers(model).values():
        trained = any(factor.requires_grad for factor in layer.parametrizations.parameters())  # type: ignore[union-attr]
        others = [name for name in layer._parameters if name != "weight"]
        own = type(layer)  # shared with the layer's copies, and torch takes the weight's property off it
        layer.__class__ = type(own.__name__, own.__bases__, dict(vars(own)))
        with torch.inference_mode(False), torch.no_grad():
            weight: Tensor = layer.weight  # type: ignore[assignment]
            parametrize.remove_parametrizations(layer, "weight")
            del layer.weight  # left there as a buffer wherever gradients are off
            layer.weight = nn.Parameter(weight, requires_grad=trained)
        for name in others:  # the weight comes back as the last parameter: put the bias behind it again
            layer._parameters[name] = layer._parameters.pop(name)
    return model


def factored_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weight is composed, by name."""
    return {name: layer for name, layer in model.named_modules() if _is_factored(layer)}


def left_alone(model: nn.Module) -> tuple[LeftAlone, ...]:
    """The layers with a weight matrix that `factorize` does not touch, and why."""
    reasons = _reasons(model)
    return tuple(LeftAlone(layer=name, reason=reason) for name, reason in reasons.items() if reason)


@torch.no_grad()
def rank_fraction(model: nn.Module) -> float:
    """How low the rank is: the share of singular values above 1e-3 of the largest, mean over the layers (0 where none).

    From the eigenvalues of the smaller Gram matrix, in float64: the threshold squared is 1e-6.
    """
    shares = []
    for layer in _suitable(model).values():
        matrix = layer.weight.detach().flatten(1).double()  # type: ignore[union-attr, operator]
        gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        s2 = torch.linalg.eigvalsh(gram)
        shares.append(float((s2 > 1e-6 * s2.max()).double().mean()))
    return sum(shares) / len(shares) if shares else 0.0


# ---------------------------------------------------------------------------------------------- which layers


def _is_factored(layer: nn.Module) -> bool:
    return parametrize.is_parametrized(layer, "weight") and any(
        isinstance(each, Composition)
        for each in layer.parametrizations["weight"]  # type: ignore[index, union-attr]
    )


def _suitable(model: nn.Module) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    return {name: modules[name] for name, reason in _reasons(model).items() if reason is None}


def _reasons(model: nn.Module) -> dict[str, str | None]:
    """Every layer with a weight matrix, with the reason to leave it alone or None."""
    uses = Counter(id(parameter) for part in model.modules() for parameter in part._parameters.values())
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | _ConvNd)}
    return {name: _reason(layer, uses) for name, layer in layers.items()}


def _reason(layer: nn.Module, uses: Counter[int]) -> str | None:
    if _is_factored(layer):
        return None
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
        return f"{type(layer).__name__} is not supported"
    if not isinstance(layer, nn.Linear) and layer.groups > 1:
        return "depthwise" if layer.groups == layer.in_channels else f"grouped ({layer.groups} groups)"
    if parametrize.is_parametrized(layer, "weight"):
        return "has a parametrization already"
    if not isinstance(layer.weight, nn.Parameter) or not layer.weight.requires_grad:
        return "its weight is not trained"
    if uses[id(layer.weight)] > 1:
        return "shares its weight with another layer"
    return None
