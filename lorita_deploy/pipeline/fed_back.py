"""A plan that is fed back, perhaps edited by hand: what it takes and loses is worked out here, whatever it says itself."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..compress.plan import check_plan
from ..forms import FORMS, NARROW_FORMS, at_widths
from ..records import CalibrationRecord, Candidate, Choice, Geometry, Plan, PriceTable
from .folder import sha256_of

if TYPE_CHECKING:
    from .context import Build

COST = {form.name: form.cost for form in (*FORMS, *NARROW_FORMS)}


def given_plan(build: Build, path: Path) -> Plan:
    """A plan from a file, priced again, with the budget that the options ask for. Raises `BadRecord`, `PlanMismatch`."""
    plan = Plan.load(path)
    record, calibration = build.collapsed, build.calibration.record
    digest, target, groups = record.weights_sha256, build.target.name, calibration.groups
    check_plan(plan, record.layers, digest, target, groups, precision=build.precision, where=path)
    epochs = max((probe.recovered for probe in plan.probes), default=0)
    if epochs > build.options.recover_epochs:
        build.watch.note(f"the plan counts on recovery: it was judged with --recover-epochs {epochs}")
    if not _written_here(build, plan, path):
        given, plan = plan, repriced(plan, build.prices, build.candidates, calibration, build.geometries)
        for note in plan.notes[len(given.notes) :]:
            build.watch.note(note)
    return plan.model_copy(update={"budget": build.budget}) if build.options.budgets else plan


def _written_here(build: Build, plan: Plan, path: Path) -> bool:
    """Whether this very build wrote ``path``, by the prices of now: its races may have corrected the times of ``plan``."""
    before, prices = build.folder.record("plan"), build.prices
    untouched = before is not None and sha256_of(path) in before.outputs.values()
    return untouched and (plan.dense_us, plan.provenance) == (prices.network_us, prices.provenance)


def repriced(
    plan: Plan,
    prices: PriceTable,
    candidates: Sequence[Candidate],
    calibration: CalibrationRecord,
    geometries: Mapping[str, Geometry],
) -> Plan:
    """``plan`` with the times of ``prices`` and the losses of ``calibration``. Times of sizes that are not on offer are worked
    out from those that are, and a note names the layers."""
    us = {each.candidate: each.us for each in prices.times}
    curves = {each.layer: each.loss_at_rank for each in calibration.layers}
    widths = {each.group: each.loss_at_width for each in calibration.groups}
    choices, between = [], []
    for choice in plan.choices:
        of_layer = [each for each in candidates if each.layer == choice.layer]
        exact = next((each.key for each in of_layer if _form(each) == _form(choice)), None)
        if exact is None:
            between.append(choice.layer)
        found = {
            "us": us[exact] if exact else _between(choice, geometries[choice.layer], of_layer, us),
            "dense_us": next(us[each.key] for each in of_layer if each.form == "dense"),
            "predicted_loss": 0.0 if choice.rank is None else curves[choice.layer][choice.rank],
        }
        choices.append(choice.model_copy(update=found))
    groups = [
        each.model_copy(update={"predicted_loss": widths[each.group][each.kept] if each.kept < each.width else 0.0})
        for each in plan.groups
    ]
    note = f"of sizes that nothing was measured of, and priced by those nearby: {', '.join(between)}"
    return plan.model_copy(
        update={
            "choices": tuple(choices),
            "groups": tuple(groups),
            "provenance": prices.provenance,
            "dense_us": prices.network_us,
            "predicted_us": prices.rest_us + sum(choice.us for choice in choices),
            "predicted_loss": sum(each.predicted_loss for each in choices) + sum(each.predicted_loss for each in groups),
            "predictions": (),
            "notes": tuple(dict.fromkeys([*plan.notes, *([note] if between else [])])),
        }
    )


def _between(choice: Choice, geometry: Geometry, candidates: Sequence[Candidate], us: Mapping[str, float]) -> float:
    """The time of a size that is not on offer: by multiply-adds between the neighbours of its form. Beyond those it is never
    less than the smallest takes, and in proportion more than the largest does."""
    alike = [each for each in candidates if each.form == choice.form] or list(candidates)
    known = sorted({each.macs: us[each.key] for each in alike}.items())
    macs = COST[choice.form](at_widths(geometry, choice.k_in, choice.k_out), choice.rank)[1]
    if macs >= known[-1][0]:
        return known[-1][1] * macs / known[-1][0]
    for (low, low_us), (high, high_us) in itertools.pairwise(known):
        if low <= macs < high:
            return low_us + (high_us - low_us) * (macs - low) / (high - low)
    return known[0][1]


def _form(each: Candidate | Choice) -> tuple[str, int, int, int | None]:
    return (each.form, each.k_in, each.k_out, each.rank)
