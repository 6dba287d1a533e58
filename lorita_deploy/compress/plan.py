"""Candidates + times + budget in, plan out. Pure: no tensors, no data, no exporters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import PlanMismatch
from ..forms import at_widths
from ..records import (
    Budget,
    Candidate,
    Choice,
    Geometry,
    GroupCalibration,
    GroupChoice,
    Layer,
    Plan,
    Precision,
    Prediction,
    PriceTable,
    Probe,
    WidthOffer,
)
from .knapsack import MARGIN, Objective, Pick, Table

__all__ = ["MARGIN", "Objective", "Solution", "check_plan", "dense", "fastest", "make_plan", "solve"]

UNITS: dict[Objective, str] = {"latency": "us", "macs": "multiply-adds", "params": "parameters"}
"""What budgets count."""


@dataclass(frozen=True)
class Solution:
    """One candidate per layer and one width per channel group. ``note`` says what kept a budget from being met."""

    choices: tuple[Choice, ...]
    cost: float
    """In the budget's unit: microseconds of the whole network, or a count over the layers."""
    predicted_us: float
    predicted_loss: float
    solver: str
    feasible: bool = True
    note: str = ""
    groups: tuple[GroupChoice, ...] = ()

    def changed(self) -> tuple[Choice, ...]:
        """The choices that are not dense."""
        return tuple(choice for choice in self.choices if choice.form != "dense")


Shape = tuple[tuple[str, int | None, int, int], ...]
"""What a set of choices makes of the network: (layer, rank, k_in, k_out) of every layer that changes."""


def shape_of(choices: Iterable[Choice]) -> Shape:
    return tuple((each.layer, each.rank, each.k_in, each.k_out) for each in choices if each.form != "dense")


def solve(
    candidates: Sequence[Candidate],
    prices: PriceTable,
    *,
    budget_us: float | None,
    objective: Objective = "latency",
    widths: Sequence[WidthOffer] = (),
    time_limit_s: float = 10.0,
) -> Solution:
    """The plan of least predicted loss whose cost is within the budget.

    ``budget_us`` is microseconds of the whole network, or a count over the layers of ``candidates`` for the objectives
    ``macs`` and ``params``; None is no limit, so that every layer stays dense. A budget that cannot be met gives the fastest
    plan, not feasible, with the layers that bind. Raises `BadRecord` when a layer has no dense price.
    """
    table = Table.of(candidates, prices, objective, widths)
    if budget_us is None:
        return _solution(table, table.dense("no limit: dense"))
    cheapest = table.cheapest(time_limit_s)
    least = table.fixed + cheapest.cost
    if least > budget_us:
        unit, scale = UNITS[objective], 1.0
        if objective == "latency" and prices.provenance == "estimated":
            unit, scale = "% of dense", 100 / prices.network_us  # an estimate is no time
        return _out_of_reach(table, cheapest, budget_us, least, unit, scale)
    return _solution(table, table.least_loss(budget_us - table.fixed, time_limit_s))


def fastest(
    candidates: Sequence[Candidate],
    prices: PriceTable,
    objective: Objective = "latency",
    widths: Sequence[WidthOffer] = (),
) -> Solution:
    """Every layer in its cheapest form, whatever the loss."""
    table = Table.of(candidates, prices, objective, widths)
    return _solution(table, table.cheapest())


def dense(
    candidates: Sequence[Candidate],
    prices: PriceTable,
    objective: Objective = "latency",
    widths: Sequence[WidthOffer] = (),
) -> Solution:
    """Every layer as it is."""
    return solve(candidates, prices, budget_us=None, objective=objective, widths=widths)


def _solution(table: Table, pick: Pick, *, feasible: bool = True, note: str = "") -> Solution:
    choices = tuple(
        Choice(
            layer=offer.candidate.layer,
            form=offer.candidate.form,
            k_in=offer.candidate.k_in,
            k_out=offer.candidate.k_out,
            rank=offer.candidate.rank,
            predicted_loss=offer.candidate.predicted_loss,
            us=offer.us,
            dense_us=layer[0].us,
        )
        for offer, layer in zip(pick.offers, table.offers, strict=True)
    )
    groups = tuple(
        GroupChoice(group=each.group, width=each.kept[0], kept=kept, predicted_loss=each.losses[each.kept.index(kept)])
        for each, kept in zip(table.widths, pick.kept, strict=True)
    )
    return Solution(
        choices=choices,
        cost=table.fixed + pick.cost,
        predicted_us=table.rest_us + sum(choice.us for choice in choices),
        predicted_loss=sum(choice.predicted_loss for choice in choices) + sum(each.predicted_loss for each in groups),
        solver=pick.solver,
        feasible=feasible,
        note=note or pick.note,
        groups=groups,
    )


def _out_of_reach(table: Table, cheapest: Pick, budget: float, least: float, unit: str, scale: float) -> Solution:
    """``scale``: what is said is in ``unit``, of which so many make up one of what is counted."""
    heaviest = sorted(cheapest.offers, key=lambda offer: -offer.cost)[:3]
    binding = ", ".join(f"{offer.candidate.layer} ({offer.cost / least:.0%})" for offer in heaviest)
    nearest = cheapest.note or "with every layer in its cheapest form"
    digits = ".6g" if scale == 1 else ".3g"
    wanted, nearest_cost = (f"{scale * value:{digits}} {unit}" for value in (budget, least))
    note = (
        f"a budget of {wanted} cannot be met: the nearest is {nearest_cost}, {nearest}; "
        f"of that {table.fixed / least:.0%} is outside the layers; the layers that bind: {binding}"
    )
    return _solution(table, cheapest, feasible=False, note=note)


# ---------------------------------------------------------------------------------------------- the document


def make_plan(
    solution: Solution,
    *,
    model: str,
    network_sha256: str,
    target: str,
    precision: Precision,
    budget: Budget,
    prices: PriceTable,
    probes: Sequence[Probe] = (),
    predictions: Sequence[Prediction] = (),
    notes: Sequence[str] = (),
) -> Plan:
    """The document of a solution."""
    return Plan(
        model=model,
        network_sha256=network_sha256,
        target=target,
        precision=precision,
        budget=budget,
        provenance=prices.provenance,
        dense_us=prices.network_us,
        predicted_us=solution.predicted_us,
        predicted_loss=solution.predicted_loss,
        groups=solution.groups,
        choices=solution.choices,
        solver=solution.solver,
        probes=tuple(probes),
        predictions=tuple(predictions),
        notes=tuple(notes),
    )


def check_plan(
    plan: Plan,
    layers: Iterable[Layer],
    network_sha256: str,
    target: str,
    groups: Sequence[GroupCalibration] = (),
    *,
    precision: Precision | None = None,
    where: Path | str = "plan",
) -> None:
    """Whether ``plan`` was made for these layers, these weights, this target and, where it is given, this ``precision``.
    Raises `PlanMismatch` with what differs.

    ``groups`` are the channel groups of the network that may become narrower; ``where`` is what the error calls the plan.
    """
    layers = tuple(layers)
    geometries = {layer.name: layer.geometry for layer in layers}
    named = {choice.layer for choice in plan.choices}
    findings = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for names, what in (
            (sorted(named - geometries.keys()), "layers of the plan are not in the network"),
            (sorted(geometries.keys() - named), "layers of the network are not in the plan"),
        )
        if names
    ]
    expected, unknown = narrowed_widths(plan.groups, geometries, groups)
    findings += unknown
    for choice in plan.choices:
        geometry = geometries.get(choice.layer)
        if geometry is None:
            continue
        k_in, k_out = expected.get(choice.layer, (geometry.in_channels, geometry.out_channels))
        most = min(k_out, at_widths(geometry, k_in, k_out).n)
        if choice.form in ("pair", "narrow-pair") and not 1 <= (choice.rank or 0) <= most:
            findings.append(f"{choice.layer}: rank {choice.rank} is not in 1..{most}")
        elif choice.form in ("dense", "narrow") and choice.rank is not None:
            findings.append(f"{choice.layer}: rank {choice.rank}, of a form that has none ({choice.form})")
        elif (choice.k_in, choice.k_out) != (k_in, k_out):
            widths = f"{k_in} to {k_out}" + (" with the plan's widths" if choice.layer in expected else "")
            findings.append(f"{choice.layer}: {choice.k_in} to {choice.k_out} channels, the layer has {widths}")
    if len(named) < len(plan.choices):
        findings.append("a layer is named twice")
    if plan.target != target:
        findings.append(f"made for target {plan.target}, not {target}")
    if precision is not None and plan.precision != precision:
        findings.append(f"made for {plan.precision}, not {precision}")
    if not findings and plan.network_sha256 != network_sha256:
        findings.append("made for other weights of the same architecture")
    if findings:
        raise PlanMismatch(
            "; ".join(findings), where=where, fix="let lorita-deploy plan write it anew for this network and target"
        )


def narrowed_widths(
    choices: Sequence[GroupChoice], geometries: Mapping[str, Geometry], groups: Sequence[GroupCalibration]
) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """(channels read, written) of the layers that the groups' widths make narrower, and what is wrong with the choices."""
    known = {group.group: group for group in groups}
    found: dict[str, tuple[int, int]] = {}
    wrong: list[str] = []
    for choice in choices:
        if choice.kept == choice.width:
            continue
        group = known.get(choice.group)
        if (
            group is None
            or group.width != choice.width
            or not 1 <= choice.kept <= choice.width
            or choice.kept % max(1, group.heads)
        ):
            wrong.append(f"group {choice.group} cannot keep {choice.kept} of {choice.width} channels")
            continue
        for layer in group.producers:
            found[layer] = (found.get(layer, (geometries[layer].in_channels, 0))[0], choice.kept)
        for layer, repeats in group.consumers.items():
            found[layer] = (choice.kept * repeats, found.get(layer, (0, geometries[layer].out_channels))[1])
    return found, wrong
