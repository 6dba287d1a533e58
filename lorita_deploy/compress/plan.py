"""Candidates + times + budget in, plan out. Pure: no tensors, no data, no exporters.

A multiple-choice knapsack, solved exactly as a mixed-integer program: one candidate per layer, least predicted loss, within
the budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import BadRecord, PlanMismatch
from ..records import Budget, Candidate, Choice, GroupChoice, Layer, Plan, Precision, Prediction, PriceTable, Probe

Objective = Literal["latency", "macs", "params"]

MARGIN = 0.03
"""A layer leaves its dense form only for one at least this much cheaper. Prices repeat to two or three per cent: below that
noise would decide, the layer would lose accuracy for nothing, and the whole might be slower."""
FREE_SHARE = 1e-3
"""Among plans whose predicted losses differ by less than this share, the faster one is taken."""


@dataclass(frozen=True)
class Solution:
    """One candidate per layer. ``note`` says what kept a budget from being met."""

    choices: tuple[Choice, ...]
    cost: float
    """In the budget's unit: microseconds of the whole network, or a count over the layers."""
    predicted_us: float
    predicted_loss: float
    solver: str
    feasible: bool = True
    note: str = ""


def solve(
    candidates: Sequence[Candidate],
    prices: PriceTable,
    *,
    budget_us: float | None,
    objective: Objective = "latency",
    time_limit_s: float = 10.0,
) -> Solution:
    """The plan of least predicted loss whose cost is within the budget.

    ``budget_us`` is microseconds of the whole network, or a count over the layers of ``candidates`` for the objectives
    ``macs`` and ``params``; None is no limit, so that every layer stays dense. A budget that cannot be met gives the fastest
    plan, not feasible, with the layers that bind. Raises `BadRecord` when a layer has no dense price.
    """
    table = _Table.of(candidates, prices, objective)
    if budget_us is None:
        return table.solution([layer[0] for layer in table.offers], "no limit: dense")
    least = table.fixed + sum(offer.cost for offer in table.cheapest())
    if least > budget_us:
        return _out_of_reach(table, budget_us, least)
    return _knapsack(table, budget_us - table.fixed, time_limit_s)


def fastest(candidates: Sequence[Candidate], prices: PriceTable, objective: Objective = "latency") -> Solution:
    """Every layer in its cheapest form, whatever the loss."""
    table = _Table.of(candidates, prices, objective)
    return table.solution(table.cheapest(), "each layer's fastest")


def dense(candidates: Sequence[Candidate], prices: PriceTable, objective: Objective = "latency") -> Solution:
    """Every layer as it is."""
    return solve(candidates, prices, budget_us=None, objective=objective)


# ---------------------------------------------------------------------------------------------- offers


@dataclass(frozen=True)
class _Offer:
    """A candidate with its time and what it takes of the budget."""

    candidate: Candidate
    us: float
    cost: float


@dataclass(frozen=True)
class _Table:
    """Per layer, in order: what may be chosen, dense first."""

    offers: list[list[_Offer]]
    fixed: float
    """What the budget pays outside the layers."""
    rest_us: float

    @classmethod
    def of(cls, candidates: Sequence[Candidate], prices: PriceTable, objective: Objective) -> _Table:
        """Unpriced candidates and those that gain too little are left out."""
        times = {price.candidate: price.us for price in prices.times}
        layers: dict[str, list[_Offer]] = {}
        for candidate in sorted(candidates, key=lambda each: each.form != "dense"):  # stable: dense first
            us = times.get(candidate.key)
            offers = layers.setdefault(candidate.layer, [])
            if candidate.form == "dense" and us is None:
                what = f"the prices lack layer {candidate.layer} ({candidate.key})"
                raise BadRecord(what, where=candidate.layer, fix="measure the prices again")
            if us is None or (candidate.form != "dense" and not offers):
                continue
            cost = us if objective == "latency" else float(candidate.macs if objective == "macs" else candidate.params)
            if not offers or cost <= (1 - MARGIN) * offers[0].cost:
                offers.append(_Offer(candidate, us, cost))
        fixed = prices.rest_us if objective == "latency" else 0.0
        return cls([_undominated(offers) for offers in layers.values()], fixed, prices.rest_us)

    def cheapest(self) -> list[_Offer]:
        return [min(layer, key=_cheapest) for layer in self.offers]

    def solution(self, chosen: list[_Offer], solver: str, *, feasible: bool = True, note: str = "") -> Solution:
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
            for offer, layer in zip(chosen, self.offers, strict=True)
        )
        return Solution(
            choices=choices,
            cost=self.fixed + sum(offer.cost for offer in chosen),
            predicted_us=self.rest_us + sum(choice.us for choice in choices),
            predicted_loss=sum(choice.predicted_loss for choice in choices),
            solver=solver,
            feasible=feasible,
            note=note,
        )


def _cheapest(offer: _Offer) -> tuple[float, float]:
    return offer.cost, offer.candidate.predicted_loss


def _undominated(offers: list[_Offer]) -> list[_Offer]:
    """Without the offers that another is no worse than in both cost and loss; the first, dense, stays."""
    kept: list[_Offer] = []
    for offer in sorted(offers[1:], key=_cheapest):
        if not kept or offer.candidate.predicted_loss < kept[-1].candidate.predicted_loss:
            kept.append(offer)
    return [offers[0], *kept]


# ---------------------------------------------------------------------------------------------- solving


def _knapsack(table: _Table, budget: float, time_limit_s: float) -> Solution:
    """Least loss with the offers' costs within ``budget``, which is known to be possible."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, linprog, milp
    from scipy.sparse import csr_array

    flat = [(row, offer) for row, layer in enumerate(table.offers) for offer in layer]
    rows, layers = [row for row, _ in flat], len(table.offers)
    loss = np.array([offer.candidate.predicted_loss for _, offer in flat])
    share = np.array([offer.cost for _, offer in flat]) / max(budget, 1e-12)
    one_each = csr_array((np.ones(len(flat)), (rows, range(len(flat)))), shape=(layers, len(flat)))

    # The relaxation bounds the loss from below and nearly equals it. In its unit the solver's absolute tolerances are small
    # however small the losses are, and what alone costs more than a plan made by rounding it need not be looked at.
    largest = float(loss.max()) or 1.0
    relaxed = linprog(loss / largest, A_ub=share[None, :], b_ub=[1.0], A_eq=one_each, b_eq=np.ones(layers), bounds=(0, 1))
    if relaxed.x is None:  # the budget is the least to the last digit
        return table.solution(table.cheapest(), "each layer's fastest")
    unit = max(float(relaxed.fun), 1e-9) * largest
    taken = [(row, offer) for (row, offer), x in zip(flat, relaxed.x, strict=True) if x > 1e-9]
    rounded = [min((offer for at, offer in taken if at == row), key=_cheapest) for row in range(layers)]
    bound = sum(offer.candidate.predicted_loss for offer in rounded) + FREE_SHARE * unit

    result = milp(
        loss / unit + FREE_SHARE * share,
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, np.where(loss <= bound, 1, 0)),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(share[None, :], -np.inf, 1.0)],
        options={"time_limit": time_limit_s, "mip_rel_gap": 1e-4},
    )
    if result.x is None:
        note = f"the solver found no plan of its own within {time_limit_s:g} s; this one is the rounded relaxation"
        return table.solution(rounded, "highs: time limit, relaxation rounded", note=note)
    chosen: list[_Offer] = []
    for row in range(layers):
        chosen.append(max(((x, offer) for x, (at, offer) in zip(result.x, flat, strict=True) if at == row), key=_first)[1])
    gap = float(result.mip_gap or 0.0)
    if result.status == 0:
        return table.solution(chosen, f"highs: optimal, gap {gap:.2%}")
    note = f"the solver stopped at its time limit; the loss of its best plan is within {gap:.1%} of the least"
    return table.solution(chosen, f"highs: time limit of {time_limit_s:g} s, gap {gap:.2%}", note=note)


def _first(pair: tuple[float, _Offer]) -> float:
    return pair[0]


def _out_of_reach(table: _Table, budget: float, least: float) -> Solution:
    chosen = table.cheapest()
    heaviest = sorted(chosen, key=lambda offer: -offer.cost)[:3]
    binding = ", ".join(f"{offer.candidate.layer} ({offer.cost / least:.0%})" for offer in heaviest)
    note = (
        f"a budget of {budget:.6g} cannot be met: the nearest is {least:.6g} with every layer in its fastest form, "
        f"of which {table.fixed / least:.0%} is outside the layers; the layers that bind: {binding}"
    )
    return table.solution(chosen, "each layer's fastest", feasible=False, note=note)


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
    groups: Sequence[GroupChoice] = (),
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
        groups=tuple(groups),
        choices=solution.choices,
        solver=solution.solver,
        probes=tuple(probes),
        predictions=tuple(predictions),
        notes=tuple(notes),
    )


def check_plan(plan: Plan, layers: Iterable[Layer], network_sha256: str, target: str) -> None:
    """Whether ``plan`` was made for these layers, these weights and this target. Raises `PlanMismatch` with what differs."""
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
    for choice in plan.choices:
        geometry = geometries.get(choice.layer)
        if geometry and choice.form == "pair" and not 1 <= (choice.rank or 0) <= min(geometry.m, geometry.n):
            findings.append(f"{choice.layer}: rank {choice.rank} is not in 1..{min(geometry.m, geometry.n)}")
        if geometry and (choice.k_in, choice.k_out) != (geometry.in_channels, geometry.out_channels):
            widths = f"{geometry.in_channels} to {geometry.out_channels}"
            findings.append(f"{choice.layer}: {choice.k_in} to {choice.k_out} channels, the layer has {widths}")
    if len(named) < len(plan.choices):
        findings.append("a layer is named twice")
    if plan.target != target:
        findings.append(f"made for target {plan.target}, not {target}")
    if not findings and plan.network_sha256 != network_sha256:
        findings.append("made for other weights of the same architecture")
    if findings:
        raise PlanMismatch(
            "; ".join(findings), where="plan", fix="let lorita-deploy plan write it anew for this network and target"
        )
