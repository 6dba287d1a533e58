"""Smaller dense layers: which channels of a group to keep, and their consumers rewritten to do without the others.

An interpolative decomposition on the data as the consumers read it. Legend, at one consumer of a group of C channels: x (C,)
what it reads at one position, C = E[x x'] uncentred; W_t (m, C) its weight at kernel tap t, G (m, m) the second moment of the
loss gradient at its outputs. With the channels I kept, x is rebuilt as T x_I,

    T = C[:, I] C[I, I]^-1,        S = C - C[:, I] C[I, I]^-1 C[I, :]   the second moment of what is lost,

and T is folded into the consumer, W_t <- W_t T. The predicted loss is tr(A S), A = positions / 2 * sum_t W_t' G W_t, summed
over consumers: exact where the consumer has a single tap; with several, what is lost at neighbouring pixels is taken for
uncorrelated. Channels that are always zero, or proportional to kept ones, cost nothing.

A consumer that does not pad with zeros rebuilds x around its mean (C is then the covariance) and takes the means into its bias:
there a constant channel costs nothing either. Beside zero padding a constant is not constant, and there is no such intercept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .cuts import ChannelGroup, Cut, Member, ensure_bias, keep_channels, replace_tensor, takes_constants
from .moments import DAMPING, Moments
from .readings import Reading, Readings
from .rewrite import duplicate
from .spectrum import finite_matrix

if TYPE_CHECKING:
    from torch import Tensor, nn

NOTHING = 1e-10
"""Share of a power below which it is numerically nothing: 1e-5 in amplitude, ten times what float32 leaves of a zero."""
RIDGE = 1e-8
"""Added to the kept channels' correlations when the others are rebuilt: keeps coefficients finite where kept channels repeat
each other, and changes nothing else that float32 could show."""


@dataclass(frozen=True)
class Selection:
    """The channels of a group from the most to the least needed, and what each width costs."""

    order: tuple[int, ...]
    loss_at_width: tuple[float, ...]
    """Predicted loss increase at width 0, 1, ..., C, in the unit of `Truncation.loss_at_rank`; never increasing."""

    @property
    def free_width(self) -> int:
        """The smallest width (at least 1) that costs nothing: the other channels are dead, repeat kept ones or are not used."""
        return max(1, self.loss_at_width.index(0.0))

    def kept(self, width: int) -> tuple[int, ...]:
        """The channels to keep at ``width``, ascending."""
        return tuple(sorted(self.order[:width]))


# ---------------------------------------------------------------------------------------------- selecting


def select_channels(module: nn.Module, group: ChannelGroup, readings: Readings, moments: Mapping[str, Moments]) -> Selection:
    """The channels of ``group``, greedily: each next one takes away most of the predicted loss that is left.

    ``moments`` of the group's consumers give G and the positions. From half as many channels as there are rows on, a curve is
    held until full width: so few rows can be rebuilt from any channels. O(C^3) for each consumer. Raises `BadNetwork` for
    weights that are not finite.
    """
    eliminations = []
    for member in group.consumers:
        finite_matrix(module, member.layer)
        layer = module.get_submodule(member.layer)
        A = sensitivity(layer, member, moments[member.layer])
        eliminations.append(_Elimination(_to_rebuild(layer, readings[group.name, member.layer]), A))
    rows = min(readings[group.name, member.layer].rows for member in group.consumers)

    whole = sum(each.whole for each in eliminations)
    losses, order = [whole], list[int]()
    gains = _gains(eliminations, order)
    while len(order) < min(group.width, rows // 2) and losses[-1] > NOTHING * whole:
        best = int(gains.argmax())
        if gains[best] <= 0:  # what is left of the channels is rounding
            break
        losses.append(min(losses[-1], losses[-1] - sum(each.eliminate(best) for each in eliminations)))
        order.append(best)
        gains = _gains(eliminations, order)
    held = losses[-1] if losses[-1] > NOTHING * whole else 0.0
    curve = losses[: len(order)] + [held] * (group.width - len(order)) + [0.0]
    taken = set(order)
    rest = [channel for channel in gains.argsort(descending=True, stable=True).tolist() if channel not in taken]
    return Selection((*order, *rest), tuple(float(f"{loss:.6g}") for loss in curve))


def _to_rebuild(layer: nn.Module, reading: Reading) -> Tensor:
    """(C, C) the moment C of what the consumer must rebuild: centred if constants can go into its bias."""
    import torch

    if not takes_constants(layer):
        return reading.second
    centred = reading.second - torch.outer(reading.mean, reading.mean)
    varies = centred.diagonal() > NOTHING * reading.second.diagonal()
    return centred.where(varies[:, None] & varies, centred.new_zeros(()))


def sensitivity(layer: nn.Module, member: Member, moments: Moments) -> Tensor:
    """A (C, C) of a consumer, float64; G is damped as in `truncation`."""
    import torch

    G = moments.gradient
    G = G + torch.eye(len(G)) * (DAMPING * G.diagonal().mean() + torch.finfo(torch.float32).tiny)
    weights = _weights_of(member, layer).float().cpu().flatten(2)
    total = torch.zeros(len(member.positions), len(member.positions), dtype=torch.float64)
    for tap in weights.unbind(2):
        total += (tap.T @ (G @ tap)).double()
    return moments.positions / 4 * (total + total.T)


def _weights_of(member: Member, layer: nn.Module) -> Tensor:
    """The consumer's weights of the group's channels alone: (m, C, repeats, taps)."""
    import torch

    weight = layer.get_parameter("weight").detach()
    return weight.reshape(*weight.shape[:2], -1)[:, torch.tensor(member.positions, device=weight.device)]


def _gains(eliminations: Sequence[_Elimination], order: Sequence[int]) -> Tensor:
    """What each channel would take away of the loss, (C,); nothing for those that are kept already."""
    import torch

    gains = torch.stack([each.gains() for each in eliminations]).sum(0)
    gains[list(order)] = 0.0
    return gains


class _Elimination:
    """One consumer's part of the greedy path: S and Q = S A S as channels are added to I.

    With s_j, q_j columns of S and Q, adding j takes Q_jj / S_jj off tr(A S) and gives

        S <- S - u u',   Q <- Q - u v' - v u',   u = s_j / sqrt(S_jj),   v = q_j / sqrt(S_jj) - u Q_jj / (2 S_jj),

    a partial Cholesky factorisation: only diagonals, u and v are kept, and the column that is needed next is worked out.
    """

    def __init__(self, second: Tensor, A: Tensor) -> None:
        import torch

        self.C, self.Q = second, second @ A @ second
        self.whole = float((A * second).sum().clamp_min(0))
        self.s, self.q = second.diagonal().clone(), self.Q.diagonal().clone()
        self.floor = NOTHING * self.s
        self.u, self.v = torch.empty_like(second), torch.empty_like(second)
        self.steps = 0

    def gains(self) -> Tensor:
        """(C,) Q_jj / S_jj; nothing for channels that the kept ones determine."""
        return (self.q.clamp_min(0) / self.s).where(self.s > self.floor, self.s.new_zeros(()))

    def eliminate(self, j: int) -> float:
        """Add channel ``j``; returns what it takes off the loss."""
        if self.s[j] <= self.floor[j]:
            return 0.0
        u, v = self.u[: self.steps], self.v[: self.steps]
        column = self.C[j] - u[:, j] @ u
        product = self.Q[j] - u[:, j] @ v - v[:, j] @ u
        pivot, gain = column[j], product[j] / column[j]
        u, v = self.u[self.steps], self.v[self.steps]
        u.copy_(column / pivot.sqrt())
        v.copy_(product / pivot.sqrt() - gain / 2 * u)
        self.steps += 1
        self.s = self.s - u * u
        self.q = self.q - 2 * u * v
        return float(gain)


# ---------------------------------------------------------------------------------------------- rewriting


def narrow(module: nn.Module, cuts: Sequence[Cut], readings: Readings) -> nn.Module:
    """A deep copy of ``module`` with only the kept channels of each group; ``module`` itself is left as it is.

    Producers and the layers between are cut, consumers are cut with T folded in. Layers keep their hooks, type, device, memory
    format, mode and requires_grad. Raises `BadNetwork` (cannot be copied, NaN weights) and ``ValueError`` (channels that a
    group does not have, or none).
    """
    network = duplicate(module)
    narrow_in_place(network, cuts, readings)
    return network


def narrow_in_place(network: nn.Module, cuts: Sequence[Cut], readings: Readings) -> None:
    """`narrow` without the copy."""
    for group, kept in cuts:
        for member in group.consumers:
            finite_matrix(network, member.layer)
            _fold(network.get_submodule(member.layer), member, kept, readings[group.name, member.layer])
    keep_channels(network, cuts)


def rebuild(second: Tensor, kept: Sequence[int]) -> tuple[list[int], Tensor]:
    """The channels that go and the rows of T (gone, kept), float64, that rebuild them from the kept ones."""
    import torch

    gone = sorted(set(range(len(second))) - set(kept))
    power = second.diagonal().sqrt()
    scale = (1 / power).where(power > 0, torch.zeros_like(power))
    correlation = scale[:, None] * second * scale
    index = list(kept)
    among = correlation[index][:, index]
    solved = torch.linalg.solve(among + RIDGE * torch.eye(len(index), dtype=among.dtype), correlation[index][:, gone])
    return gone, (scale[index][:, None] * solved * power[gone]).T


def _fold(layer: nn.Module, member: Member, kept: Sequence[int], reading: Reading) -> None:
    """Give what the consumer does with the channels that go to the kept ones, and to its bias."""
    import torch

    gone, T = rebuild(_to_rebuild(layer, reading), kept)
    if not gone:
        return
    weight = layer.get_parameter("weight").detach()
    weights = _weights_of(member, layer)
    exact = torch.promote_types(weight.dtype, torch.float32)
    if takes_constants(layer):
        ensure_bias(layer)
        constant = (reading.mean[gone] - T @ reading.mean[list(kept)]).to(weight.device)
        bias = layer.get_parameter("bias").detach()
        replace_tensor(layer, "bias", bias.double() + weights[:, gone].double().flatten(2).sum(2) @ constant)
    T = T.to(weight.device, exact)
    added = torch.einsum("mdrt,dk->mkrt", weights[:, gone].to(exact), T)
    positions = torch.tensor([member.positions[channel] for channel in kept], device=weight.device)
    new = weight.clone().reshape(*weight.shape[:2], -1)
    new[:, positions] = (new[:, positions].to(exact) + added).to(weight.dtype)
    replace_tensor(layer, "weight", new.reshape(weight.shape))
