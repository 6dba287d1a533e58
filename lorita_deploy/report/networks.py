"""Tables of networks and plans: what each layer is, and what it becomes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..forms import at_widths, form
from ..records import (
    Candidate,
    Choice,
    CollapsedRecord,
    Geometry,
    Layer,
    LeftAlone,
    Plan,
    PriceTable,
    TrainingForecast,
    TrainRecord,
)
from . import words
from .table import Table
from .times import probe_us

NUMERICAL_RANK = 1e-3
"""Singular values above this share of the largest count (the threshold of LoRITa's authors, arXiv 2405.03089)."""


def layers(
    plan: Plan,
    collapsed: CollapsedRecord | None = None,
    *,
    candidates: Iterable[Candidate] = (),
    prices: PriceTable | None = None,
    changed_only: bool = False,
) -> Table:
    """What each layer becomes, at what size, predicted loss and time; the why where the prices are at hand.

    Times are shown where they were measured or tabled; an estimate is shown as a share and a ratio only.
    """
    known = {layer.name: layer for layer in collapsed.layers} if collapsed else {}
    candidates = tuple(candidates)
    offers = _offers(candidates, prices)
    narrower = {each.layer for each in candidates if each.form.startswith("narrow")}
    estimated = plan.provenance == "estimated"
    rows = []
    for choice in plan.choices:
        if changed_only and choice.form == "dense":
            continue
        layer = known.get(choice.layer)
        row = [choice.layer, choice.form, words.rank(choice), *(_sizes(choice, layer) if known else ())]
        row.append(words.number(choice.predicted_loss, 2))
        if estimated:
            row += [f"{100 * choice.dense_us / plan.dense_us:.1f} %", words.number(choice.us / choice.dense_us, 2)]
        else:
            row += [words.number(choice.dense_us), words.number(choice.us)]
        if prices:
            row.append(words.why(choice, offers.get(choice.layer, {}), choice.layer in narrower))
        rows.append(tuple(row))
    columns = ["layer", "form", ">rank"] + (["geometry", ">numerical rank", ">params", ">MACs"] if known else [])
    columns.append(">predicted loss")
    columns += [">share of dense time", ">time over dense"] if estimated else [">µs before", ">µs after"]
    columns += ["why"] if prices else []
    note = f"times {plan.provenance}; solver: {plan.solver}"
    return Table(f"{len(plan.changed())} of {len(plan.choices)} layers change form", tuple(columns), tuple(rows), note)


def _sizes(choice: Choice, layer: Layer | None) -> tuple[str, str, str, str]:
    if layer is None:
        return ("", "", "", "")
    geometry = at_widths(layer.geometry, choice.k_in, choice.k_out)
    params, macs = form(choice.form).cost(geometry, choice.rank)
    said = words.geometry(layer.geometry)
    if geometry != layer.geometry:
        said += f", now {choice.k_in}->{choice.k_out}"
    return (said, numerical_rank(layer), words.amount(params), words.amount(macs))


def numerical_rank(layer: Layer) -> str:
    """Singular values that count, of how many."""
    largest = layer.spectrum[0] if layer.spectrum else 0.0
    counted = sum(value > NUMERICAL_RANK * largest for value in layer.spectrum)
    return f"{counted}/{len(layer.spectrum)}"


def _offers(candidates: Iterable[Candidate], prices: PriceTable | None) -> dict[str, dict[int | None, tuple[float, float]]]:
    """Layer to rank to (time over dense time, predicted loss) of everything but dense."""
    if prices is None:
        return {}
    us = {price.candidate: price.us for price in prices.times}
    known = [candidate for candidate in candidates if candidate.key in us]
    dense = {candidate.layer: us[candidate.key] for candidate in known if candidate.form == "dense"}
    found: dict[str, dict[int | None, tuple[float, float]]] = {}
    for candidate in known:
        if candidate.form == "pair" and dense.get(candidate.layer):
            ratio = us[candidate.key] / dense[candidate.layer]
            found.setdefault(candidate.layer, {})[candidate.rank] = (ratio, candidate.predicted_loss)
    return found


def offers(plan: Plan, layer: str, candidates: Sequence[Candidate], prices: PriceTable) -> Table:
    """All that was on offer for one layer, the fastest first, and why each was not taken."""
    us = {price.candidate: price.us for price in prices.times}
    known = [each for each in candidates if each.layer == layer and each.key in us]
    dense_us = next(us[each.key] for each in known if each.form == "dense")
    choice = next(choice for choice in plan.choices if choice.layer == layer)
    size = (choice.k_in, choice.k_out, choice.rank)
    taken = next((each for each in known if (each.k_in, each.k_out, each.rank) == size), None)
    rows = []
    for each in sorted(known, key=lambda candidate: us[candidate.key]):
        said = words.number(us[each.key]) if plan.provenance != "estimated" else words.number(us[each.key] / dense_us, 2)
        sizes = (f"{each.k_in}->{each.k_out}", str(each.rank or "full"))
        rows.append((each.form, *sizes, said, words.number(each.predicted_loss, 2), words.verdict(each, taken, us)))
    column = ">us" if plan.provenance != "estimated" else ">time over dense"
    narrower = any(each.form.startswith("narrow") for each in known)
    reason = words.why(choice, _offers(known, prices).get(layer, {}), narrower)
    note = f"times {plan.provenance}, as first priced; {reason if taken else f'{words.becomes(choice)} was not on offer'}"
    return Table(
        f"{layer}: what it could become", ("form", "widths", ">rank", column, ">predicted loss", ""), tuple(rows), note
    )


def probes(plan: Plan) -> Table:
    """The plans that were built and judged while the budget was searched."""
    rows = []
    for probe in plan.probes:
        us, measured = probe_us(plan, probe)
        speed_up = f"{words.times(plan.dense_us / us)} {'measured' if measured else 'predicted'}"
        rows.append((speed_up, words.judged(probe), "kept" if probe.accepted else "too lossy"))
    note = ""
    if plan.predictions:
        pairs = ((plan.dense_us / each.predicted_us, plan.dense_us / each.measured_us) for each in plan.predictions)
        raced = "; ".join(f"{words.times(predicted)} predicted, {words.times(found)} measured" for predicted, found in pairs)
        note = f"predictions are of their round: a race puts the prices right for those after it; raced: {raced}"
    return Table("Search", (">speed-up", "judged", ""), tuple(rows), note)


def network(collapsed: CollapsedRecord) -> Table:
    """The layers of the dense network."""
    rows = [
        (layer.name, words.geometry(layer.geometry), *_matrix(layer.geometry), numerical_rank(layer))
        for layer in collapsed.layers
    ]
    size = f"{collapsed.params:,} parameters, {words.amount(collapsed.macs)} multiply-adds"
    note = f"{size}, collapse error {collapsed.collapse_error:.1e}"
    return Table(f"{collapsed.model}, collapsed", ("layer", "geometry", ">m", ">n", ">numerical rank"), tuple(rows), note)


def _matrix(geometry: Geometry) -> tuple[str, str]:
    return f"{geometry.m:,}", f"{geometry.n:,}"


def training(record: TrainRecord) -> Table:
    """One row each epoch."""
    rows = [
        (
            f"{epoch.epoch}{' *' if epoch.epoch == record.best_epoch else ''}",
            words.number(epoch.train_loss),
            words.right(epoch.validation),
            f"{100 * epoch.rank_fraction:.0f} %",
            f"{epoch.images_per_s:,.0f}",
        )
        for epoch in record.epochs
    ]
    title = f"{record.model}, N = {record.recipe.course}; {len(record.factored)} layers factored, on {record.device}"
    return Table(
        title,
        (">epoch", ">loss", "validation", ">rank kept", ">images/s"),
        tuple(rows),
        "* kept: best by validation" + (" in the last quarter" if record.recipe.epochs >= 4 else ""),
    )


def forecast(found: TrainingForecast) -> Table:
    """What a training will take."""
    rows = (
        ("parameters", f"{found.params:,}, trained as {found.trained_params:,}"),
        ("peak memory", f"{words.size(found.peak_memory_bytes)}, on {found.device}"),
        ("images/s", f"{found.images_per_s:,.0f}"),
        ("one epoch", f"{_duration(found.epoch_s)}, {found.steps_per_epoch:,} steps"),
        ("all epochs", f"{_duration(found.total_s)}, {found.epochs} epochs"),
        ("unused directions", _fading(found.fading)),
    )
    return Table(f"{found.model}, forecast from a few steps", ("", ""), rows)


def _fading(share: float) -> str:
    """Ranks count singular values above 1/1000 of the largest, so that is how far unused ones have to fade."""
    if share <= 1e-3:
        return "decay can fade them to less than 1/1000: ranks can fall"
    return f"decay fades them to {100 * share:.1f} % only: ranks stay high; give more decay, rate or epochs"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def left_alone(layers: Iterable[LeftAlone]) -> Table:
    return Table("Left alone", ("layer", "reason"), tuple((each.layer, each.reason) for each in layers))
