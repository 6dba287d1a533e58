"""The sweep over the budget, and losses put right by real ones, on a small network with estimated prices."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
from click.testing import CliRunner
from published_schemas import obeys

from lorita_deploy.cli import cli
from lorita_deploy.pipeline import build
from lorita_deploy.pipeline.front import pareto
from lorita_deploy.pipeline.options import make_options
from lorita_deploy.records import CandidateTable, ParetoFront, Plan

OPTIONS = {"model": "fcn", "target": "jetson", "epochs": 2, "calibration_samples": 128}


@pytest.fixture(scope="module")
def priced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fcn")
    build(make_options(**OPTIONS, out=str(folder)), until="price")
    return folder


def test_a_front_from_the_fastest_to_nearly_dense(priced):
    arguments = ["--model", "fcn", "--target", "jetson", "--epochs", "2", "--calibration-samples", "128", "--out", str(priced)]
    found = CliRunner().invoke(cli, ["plan", *arguments, "--pareto", "--json"])
    assert found.exit_code == 0, found.output
    front = ParetoFront.load(priced / "pareto.json")
    assert json.loads(found.stdout)["points"] == json.loads(front.model_dump_json())["points"]
    times = [point.predicted_us for point in front.points]
    assert len(times) >= 5
    assert times == sorted(times)
    assert times[-1] < front.dense_us
    losses = [point.predicted_loss for point in front.points]
    assert losses == sorted(losses, reverse=True), "more time buys less loss"
    for place, point in enumerate(front.points):
        faster = front.points[:place]
        assert point.best == all(point.accuracy.value > other.accuracy.value for other in faster)
    assert obeys(priced / "pareto.json") == "pareto"
    assert "estimated" in (priced / "pareto.md").read_text()
    picture = ElementTree.parse(priced / "pareto.svg")
    assert len(picture.findall(".//{*}path")) == len(front.points) + 1, "a mark for each plan, and one for dense"


def test_each_point_is_recovered_where_that_was_asked_for(priced):
    bare, recovered = (pareto(make_options(**OPTIONS, out=str(priced), recover_epochs=epochs)) for epochs in (0, 2))
    assert [point.choices for point in recovered.points] == [point.choices for point in bare.points]
    won = [after.accuracy.value - before.accuracy.value for before, after in zip(bare.points, recovered.points, strict=True)]
    assert min(won) >= 0
    assert max(won) > 0.05
    assert "distilled" in (priced / "pareto.md").read_text()


def test_what_training_was_obeys_its_schema(priced):
    assert obeys(priced / "trained.json") == "trained"


def test_groups_on_offer_are_priced_and_planned(priced):
    """fcn's hidden layers may lose neurons, and a tight budget takes some."""
    offered = CandidateTable.load(priced / "candidates.json")
    assert offered.widths
    build(make_options(**OPTIONS, out=str(priced), speedup=2.0), until="compress")
    plan = Plan.load(priced / "plan.json")
    assert plan.narrowed()
    written = {choice.layer: choice.k_out for choice in plan.choices}
    for group in plan.narrowed():
        assert written[group.group] == group.kept


def test_narrow_layers_can_be_declined(priced, tmp_path):
    for name in ("data.json", "trained.json", "trained.safetensors", "collapsed.json", "collapsed.safetensors"):
        (tmp_path / name).write_bytes((priced / name).read_bytes())
    (tmp_path / "stages").mkdir()
    for stage in (priced / "stages").iterdir():
        (tmp_path / "stages" / stage.name).write_bytes(stage.read_bytes())
    build(make_options(**OPTIONS, out=str(tmp_path), narrow=False, speedup=2.0), until="plan")
    assert not CandidateTable.load(tmp_path / "candidates.json").widths
    assert {choice.form for choice in Plan.load(tmp_path / "plan.json").choices} <= {"dense", "pair"}


def test_local_search_never_leaves_the_budget(priced):
    build(make_options(**OPTIONS, out=str(priced), speedup=2.0, local_search=1), until="plan")
    plan = Plan.load(priced / "plan.json")
    assert plan.predicted_us <= plan.dense_us / 2.0 * (1 + 1e-6)
