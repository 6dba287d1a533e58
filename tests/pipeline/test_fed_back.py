"""Plans that are fed back: whatever they say of times, this build's prices count, and what the command line asks for."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from fcn_builds import Seen, fcn
from made_up import three_layers

from lorita_deploy.cli import cli
from lorita_deploy.compress.plan import make_plan, solve
from lorita_deploy.pipeline import build, make_options
from lorita_deploy.pipeline.fed_back import repriced
from lorita_deploy.records import Budget, BuildReport, CalibrationRecord, Geometry, LayerCalibration, Plan, PriceTable

JETSON = {"model": "fcn", "target": "jetson-orin-nano", "train": False, "calibration_samples": 32}
"""Random weights and estimated times: a plan in a second."""


@pytest.fixture(scope="module")
def estimated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("estimated")
    build(make_options(**JETSON, out=str(folder), speedup=1.5), until="plan")
    return folder


def on_jetson(folder, until="plan", **options):
    seen = Seen()
    build(make_options(**JETSON, out=str(folder), **options), until=until, watch=seen)
    return seen


def test_a_plan_that_is_fed_back_as_it_was_leaves_everything_done(built, tmp_path):
    folder, _ = built
    before = (folder / "plan.json").read_bytes()
    mine = shutil.copy(folder / "plan.json", tmp_path / "mine.json")
    seen = Seen()
    build(fcn(folder, plan=str(mine)), watch=seen)
    assert seen.run == ["plan"]
    assert (folder / "plan.json").read_bytes() == before, "with what its races said of it"
    build(fcn(folder))


def test_no_plan_says_of_itself_where_its_times_are_from(estimated, tmp_path):
    plan = Plan.load(estimated / "plan.json")
    lies = {"provenance": "measured", "dense_us": 1e6, "predicted_us": 1.0, "predicted_loss": 0.0}
    choices = tuple(each.model_copy(update={"us": 0.01, "predicted_loss": 0.0}) for each in plan.choices)
    given = plan.model_copy(update={**lies, "choices": choices}).save(tmp_path / "given.json")
    on_jetson(estimated, plan=str(given))
    assert Plan.load(estimated / "plan.json") == plan


def test_what_was_edited_is_priced_and_judged_by_its_losses_again(estimated, tmp_path):
    plan, prices = Plan.load(estimated / "plan.json"), PriceTable.load(estimated / "prices.json")
    place, pair = next((place, each) for place, each in enumerate(plan.choices) if each.form in ("pair", "narrow-pair"))
    changed = list(plan.choices)
    changed[place] = pair.model_copy(update={"rank": pair.rank + 1})
    given = plan.model_copy(update={"choices": tuple(changed)}).save(tmp_path / "given.json")
    seen = on_jetson(estimated, plan=str(given))
    found = Plan.load(estimated / "plan.json")
    edited = found.choices[place]
    assert edited.us > pair.us
    assert edited.predicted_loss < pair.predicted_loss
    assert found.predicted_us == pytest.approx(prices.rest_us + sum(each.us for each in found.choices))
    assert found.predicted_us > plan.predicted_us
    assert not found.predictions
    assert f"priced by those nearby: {pair.layer}" in found.notes[-1]
    assert found.notes[-1] in seen.notes


def test_sizes_between_those_on_offer_take_times_between_theirs():
    candidates, prices = three_layers((8, 16, 32))
    curve = tuple(1 - rank / 64 for rank in range(65))
    layers = tuple(LayerCalibration(layer=layer, loss_at_rank=curve) for layer in "abc")
    calibration = CalibrationRecord(network_sha256="n", criterion="whitened", samples=1, seed=0, layers=layers)
    geometries = {layer: Geometry(kind="linear", out_channels=64, in_channels=64) for layer in "abc"}
    facts = {"model": "m", "network_sha256": "n", "target": "cpu", "precision": "fp32", "budget": Budget(speedup=2.0)}
    # A pair of rank r has 128 r multiply-adds here, in the table 100 r.
    candidates = tuple(each.model_copy(update={"macs": 128 * (each.rank or 32)}) for each in candidates)
    plan = make_plan(solve(candidates, prices, budget_us=155.0), prices=prices, **facts)

    def at(rank):
        choices = tuple(each.model_copy(update={"form": "pair", "rank": rank, "us": 0.0}) for each in plan.choices)
        found = repriced(plan.model_copy(update={"choices": choices}), prices, candidates, calibration, geometries)
        assert found.predicted_us == 10.0 + 3 * found.choices[0].us
        assert found.predicted_loss == pytest.approx(3 * curve[rank])
        return found.choices[0].us

    assert (at(16), at(20), at(24)) == (32.0, 40.0, 48.0)
    assert at(4) == 16.0, "nothing smaller than rank 8 was measured: it promises no more than that"
    assert at(64) == 128.0
    assert repriced(plan, prices, candidates, calibration, geometries).notes == ()


# ---------------------------------------------------------------------------------------------- edited in place


def test_a_plan_that_was_edited_in_place_can_be_fed_back(estimated, tmp_path):
    folder = tmp_path / "build"
    shutil.copytree(estimated, folder)
    body = json.loads((folder / "plan.json").read_text()) | {"notes": ["mine"]}
    (folder / "plan.json").write_text(json.dumps(body))
    seen = on_jetson(folder, plan=str(folder / "plan.json"))
    assert any("is kept as plan.edited.json" in note for note in seen.notes)
    assert "mine" in Plan.load(folder / "plan.json").notes
    on_jetson(folder, plan=str(folder / "plan.json"))
    assert on_jetson(folder, plan=str(folder / "plan.json")).run == []


def test_prices_that_were_edited_in_place_can_be_fed_back(estimated, tmp_path):
    folder = tmp_path / "build"
    shutil.copytree(estimated, folder)
    body = json.loads((folder / "prices.json").read_text()) | {"method": "mine"}
    (folder / "prices.json").write_text(json.dumps(body))
    on_jetson(folder, "price", layer_times=str(folder / "prices.json"))
    assert PriceTable.load(folder / "prices.json").method == "mine"
    assert json.loads((folder / "prices.edited.json").read_text())["method"] == "mine"


# ---------------------------------------------------------------------------------------------- budgets


def command(name, folder, *words):
    asked = ("-m", "fcn", "-t", "jetson-orin-nano", "--no-train", "--calibration-samples", "32", "-o", str(folder), *words)
    return CliRunner().invoke(cli, [name, *asked])


@pytest.mark.parametrize("name", ["plan", "export", "build"])
def test_a_speedup_that_no_plan_reaches_is_missed_wherever_it_is_asked_for(estimated, tmp_path, name):
    folder = tmp_path / "build"
    shutil.copytree(estimated, folder)
    done = command(name, folder, "--speedup", "1000")
    assert done.exit_code == 1, done.output
    assert "missed: a speed-up of 1000x was asked for: " in done.stderr
    assert "predicted (estimated)" in done.stderr
    if name == "plan":
        assert command(name, folder, "--speedup", "1.5").exit_code == 0


def test_with_a_plan_the_command_line_says_what_is_to_be_kept(estimated, tmp_path):
    given = shutil.copy(estimated / "plan.json", tmp_path / "given.json")
    folder = tmp_path / "build"
    shutil.copytree(estimated, folder)
    done = command("build", folder, "--plan", str(given), "--speedup", "1000")
    assert done.exit_code == 1, done.output
    assert BuildReport.load(folder / "report.json").plan.budget == Budget(speedup=1000.0)
    assert command("plan", folder, "--plan", str(given), "--max-latency", "1us").exit_code == 1
    assert command("plan", folder, "--plan", str(given)).exit_code == 0
