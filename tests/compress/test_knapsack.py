"""Widths and forms chosen together: linked, exact, and never without a price. Made-up tables, no tensors."""

from __future__ import annotations

import itertools
import random

import pytest

from lorita_deploy.compress.plan import check_plan, dense, fastest, make_plan, narrowed_widths, solve
from lorita_deploy.errors import PlanMismatch
from lorita_deploy.records import (
    Budget,
    Candidate,
    Geometry,
    GroupCalibration,
    GroupChoice,
    Layer,
    LayerTime,
    PriceTable,
    WidthOffer,
)

LAYERS = ("a", "b", "c")
WIDTHS = (
    WidthOffer(group="a", producers=("a",), consumers={"b": 1}, kept=(32, 16, 8), losses=(0.0, 0.1, 0.6)),
    WidthOffer(group="b", producers=("b",), consumers={"c": 4}, kept=(32, 16), losses=(0.0, 0.2)),
)
SIZES = {
    "a": [(3, k) for k in (32, 16, 8)],
    "b": list(itertools.product((32, 16, 8), (32, 16))),
    "c": [(128, 10), (64, 10)],
}


def tables(seed: int) -> tuple[tuple[Candidate, ...], PriceTable]:
    draw = random.Random(seed)
    candidates, times = [], []
    for layer, sizes in SIZES.items():
        for k_in, k_out in sizes:
            whole = draw.uniform(0.5, 1.5) * k_in * k_out / 50
            full = (k_in, k_out) == sizes[0]
            for rank in (None, 8, 4):
                form = ("dense" if full else "narrow") if rank is None else ("pair" if full else "narrow-pair")
                loss = 0.0 if rank is None else draw.uniform(0.05, 0.5) * 8 / rank
                candidates.append(
                    Candidate(
                        layer=layer,
                        group=layer,
                        form=form,
                        k_in=k_in,
                        k_out=k_out,
                        rank=rank,
                        precision="fp32",
                        params=1,
                        macs=k_in * k_out,
                        predicted_loss=loss,
                    )
                )
                us = whole if rank is None else draw.uniform(0.2, 0.9) * whole
                times.append(LayerTime(candidate=candidates[-1].key, us=us, provenance="measured"))
    network = sum(time.us for time, each in zip(times, candidates, strict=True) if each.form == "dense")
    prices = PriceTable(
        network_sha256="n", target="cpu", runtime="r", precision="fp32", threads=1, batch=1, host=None,
        provenance="measured", method="made up", network_us=network + 5.0, rest_us=5.0, times=tuple(times),
    )  # fmt: skip
    return tuple(candidates), prices


def everything(candidates: tuple[Candidate, ...], prices: PriceTable) -> list[tuple[float, float]]:
    """(microseconds, loss) of all plans whose widths fit."""
    us = {time.candidate: time.us for time in prices.times}
    found = []
    for one, other in itertools.product(*(zip(each.kept, each.losses, strict=True) for each in WIDTHS)):
        sizes = {"a": (3, one[0]), "b": (one[0], other[0]), "c": (4 * other[0], 10)}
        fitting = [
            [each for each in candidates if each.layer == name and (each.k_in, each.k_out) == sizes[name]] for name in LAYERS
        ]
        for picked in itertools.product(*fitting):
            time = prices.rest_us + sum(us[each.key] for each in picked)
            found.append((time, one[1] + other[1] + sum(each.predicted_loss for each in picked)))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_the_best_of_all_plans_by_enumeration(seed: int) -> None:
    candidates, prices = tables(seed)
    plans = everything(candidates, prices)
    quickest = fastest(candidates, prices, widths=WIDTHS)
    assert quickest.predicted_us == pytest.approx(min(time for time, _ in plans), rel=1e-4)
    for share in (0.9, 0.6, 0.4):
        budget = quickest.predicted_us + share * (prices.network_us - quickest.predicted_us)
        found = solve(candidates, prices, budget_us=budget, widths=WIDTHS)
        assert found.feasible
        assert found.predicted_us <= budget * (1 + 1e-6)
        least = min(loss for time, loss in plans if time <= budget)
        assert found.predicted_loss == pytest.approx(least, rel=0.01, abs=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_layers_read_what_the_layers_before_them_write(seed: int) -> None:
    candidates, prices = tables(seed)
    found = solve(candidates, prices, budget_us=0.5 * prices.network_us, widths=WIDTHS)
    sizes = {choice.layer: (choice.k_in, choice.k_out) for choice in found.choices}
    kept = {group.group: group.kept for group in found.groups}
    assert sizes == {"a": (3, kept["a"]), "b": (kept["a"], kept["b"]), "c": (4 * kept["b"], 10)}


def test_without_a_limit_nothing_becomes_narrower() -> None:
    found = dense(*tables(0), widths=WIDTHS)
    assert all(group.kept == group.width for group in found.groups)
    assert {choice.form for choice in found.choices} == {"dense"}


def test_a_width_without_prices_is_never_chosen() -> None:
    candidates, prices = tables(1)
    priced = tuple(time for time in prices.times if "|16x" not in time.candidate)
    found = fastest(candidates, prices.model_copy(update={"times": priced}), widths=WIDTHS)
    assert {group.group: group.kept for group in found.groups}["a"] != 16


def network() -> tuple[list[Layer], tuple[GroupCalibration, ...]]:
    layers = []
    for name in LAYERS:
        k_in, k_out = SIZES[name][0]
        geometry = Geometry(kind="linear", in_channels=k_in, out_channels=k_out)
        layers.append(Layer(name=name, geometry=geometry, group=name, spectrum=()))
    groups = tuple(
        GroupCalibration(
            group=each.group, width=each.kept[0], producers=each.producers, consumers=each.consumers,
            order=tuple(range(each.kept[0])), loss_at_width=(0.0,) * (each.kept[0] + 1),
        )
        for each in WIDTHS
    )  # fmt: skip
    return layers, groups


def test_a_narrow_plan_fits_its_network_and_an_inconsistent_one_does_not() -> None:
    candidates, prices = tables(2)
    solution = solve(candidates, prices, budget_us=0.4 * prices.network_us, widths=WIDTHS)
    assert any(group.kept < group.width for group in solution.groups)
    plan = make_plan(
        solution, model="m", network_sha256="n", target="cpu", precision="fp32", budget=Budget(speedup=2.5), prices=prices
    )
    layers, groups = network()
    check_plan(plan, layers, "n", "cpu", groups)
    edited = tuple(group.model_copy(update={"kept": group.width}) for group in plan.groups)
    with pytest.raises(PlanMismatch, match="channels, the layer has"):
        check_plan(plan.model_copy(update={"groups": edited}), layers, "n", "cpu", groups)
    strange = (GroupChoice(group="nobody", width=32, kept=16),)
    with pytest.raises(PlanMismatch, match="group nobody cannot keep 16 of 32"):
        check_plan(plan.model_copy(update={"groups": strange}), layers, "n", "cpu", groups)


def test_a_layer_between_two_groups_takes_both_widths() -> None:
    layers, groups = network()
    geometries = {layer.name: layer.geometry for layer in layers}
    choices = [GroupChoice(group="a", width=32, kept=8), GroupChoice(group="b", width=32, kept=16)]
    found, wrong = narrowed_widths(choices, geometries, groups)
    assert found == {"a": (3, 8), "b": (8, 16), "c": (64, 10)}
    assert not wrong


def test_a_solver_without_time_gives_a_plan_with_all_channels_that_fits_and_says_so() -> None:
    candidates, prices = tables(3)
    cheapest = {
        layer: min(
            time.us
            for time, each in zip(prices.times, candidates, strict=True)
            if each.layer == layer and each.form in ("dense", "pair")
        )
        for layer in LAYERS
    }
    reached = prices.rest_us + sum(cheapest.values())
    found = solve(candidates, prices, budget_us=reached + 1.0, widths=WIDTHS, time_limit_s=0.0)
    assert found.feasible
    assert found.predicted_us == pytest.approx(reached)
    assert all(group.kept == group.width for group in found.groups)
    assert "all channels, as the solver found none" in found.note
    missed = solve(candidates, prices, budget_us=reached - 1.0, widths=WIDTHS, time_limit_s=0.0)
    assert not missed.feasible
    assert "all channels, as the solver found none" in missed.note
