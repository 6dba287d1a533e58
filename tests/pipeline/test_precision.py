"""What is chosen, what ships, and a whole build in a lower precision."""

import copy
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import lorita_deploy as ld
from lorita_deploy.bundle.manifest import check_bundle
from lorita_deploy.measure.fidelity import TOLERANCES
from lorita_deploy.pipeline.acceptance import acceptance
from lorita_deploy.pipeline.choosing import ships
from lorita_deploy.pipeline.context import Build
from lorita_deploy.pipeline.precision import choose
from lorita_deploy.pipeline.reporting import gather
from lorita_deploy.records import (
    Accuracy,
    Artifact,
    FidelityReport,
    LatencyRatio,
    PrecisionRecord,
    PrecisionTrial,
    Receipt,
    ratio_between,
)


def ratio(name, value, half_width=0.02):
    interval = (value * (1 - half_width), value * (1 + half_width))
    return LatencyRatio(candidate=name, baseline="dense", n=10, reloads=10, ratio=value, ci95=interval)


def trial(precision, time, refused=None):
    right = Accuracy(metric="accuracy", split="validation", correct=99, total=100)
    found = None if precision == "fp32" else ratio(precision, time)
    return PrecisionTrial(precision=precision, accuracy=right, size_bytes=1, ratio=found, refused=refused)


def test_auto_takes_the_fastest_that_nothing_speaks_against():
    trials = (trial("fp32", 1.0), trial("fp16", 0.8), trial("int8", 0.4))
    assert choose(trials, "auto") == "int8"
    assert choose((*trials[:2], trial("int8", 0.4, refused="too much is lost")), "auto") == "fp16"
    assert choose((trial("fp32", 1.0), trial("fp16", 1.2)), "auto") == "fp32"


def test_what_was_asked_for_is_taken_unless_it_is_refused():
    assert choose((trial("fp32", 1.0), trial("int8", 0.9)), "int8") == "int8"
    assert choose((trial("fp32", 1.0), trial("int8", 0.9, refused="not faster")), "int8") == "fp32"


def artifact(role, precision):
    name = f"{role}-fp32.onnx" if precision == "fp32" else f"{role}.onnx"
    rest = {"exporter": "onnx", "sha256": "", "size_bytes": 1, "opset": 17, "ir_version": 8, "batch": 1, "dynamic_batch": False}
    rest |= {"rung": 0, "simplified": False, "inputs": (), "outputs": ()}
    return Artifact(role=role, path=name, precision=precision, **rest)


def shipped(compressed, dense_fp32, compressed_fp32, on_target=True):
    """What ships, from times over that of dense in int8."""
    roles = ("compressed", "dense")
    build = SimpleNamespace(
        plan=SimpleNamespace(changed=lambda: ("a choice",)),
        on_target=on_target,
        artifacts=tuple(artifact(role, "int8") for role in roles),
        exported=SimpleNamespace(reference=tuple(artifact(role, "fp32") for role in roles)),
    )
    times = {"compressed": compressed, "dense-fp32": dense_fp32, "compressed-fp32": compressed_fp32}
    found = ships(build, SimpleNamespace(ratios=tuple(ratio(name, value) for name, value in times.items())))
    return found.role, found.precision


def test_int8_ships_only_where_it_beats_both_fp32_networks():
    assert shipped(compressed=0.6, dense_fp32=3.0, compressed_fp32=1.5) == ("compressed", "int8")
    assert shipped(compressed=1.3, dense_fp32=3.0, compressed_fp32=1.5) == ("dense", "int8")
    assert shipped(compressed=0.6, dense_fp32=3.0, compressed_fp32=0.5) == ("compressed", "fp32")
    assert shipped(compressed=0.9, dense_fp32=0.5, compressed_fp32=0.8) == ("dense", "fp32")
    assert shipped(compressed=0.6, dense_fp32=3.0, compressed_fp32=0.61) == ("compressed", "fp32"), "not proven faster"


def test_away_from_the_target_the_race_here_decides_nothing():
    assert shipped(compressed=1.3, dense_fp32=0.3, compressed_fp32=0.2, on_target=False) == ("compressed", "int8")


def test_a_ratio_through_a_third_is_no_narrower_than_its_parts():
    receipt = SimpleNamespace(ratios=(ratio("compressed", 0.5), ratio("dense-fp32", 2.0)))
    found = ratio_between(receipt, "compressed", "dense-fp32")
    assert found.ratio == pytest.approx(0.25)
    assert found.ci95 == pytest.approx((0.25 * 0.98 / 1.02, 0.25 * 1.02 / 0.98))
    assert ratio_between(receipt, "dense", "dense-fp32").ratio == pytest.approx(0.5)
    assert ratio_between(receipt, "compressed", "dense").ratio == 0.5


@pytest.fixture(scope="module")
def mine():
    """A small network of one's own, trained for real, and how it is judged."""
    digits = ld.load_dataset("digits", shape=(1, 16, 16))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
    for _ in range(3):
        for images, labels in digits.batches("train", 32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    inputs = [(images,) for images, _ in digits.batches("train", 32, limit=128)]
    task = ld.Task(
        examples=(inputs[0][0][:1],),
        calibration=inputs,
        evaluate=lambda network: ld.accuracy(network, digits.batches("validation", 32), "validation"),
    )
    return {"model": net, "task": task}


def options(out, **changes):
    return ld.make_options(**{"model": "mine", "target": "cpu", "out": str(out), "max_drop": 1.0, "narrow": False, **changes})


@pytest.mark.parametrize(("max_drop", "role"), [(1.0, "compressed"), (1.0, "dense"), (None, "compressed")])
def test_what_compression_has_lost_is_not_forgiven_a_second_time(mine, max_drop, role):
    """An artifact that is as right as its own network, which is two points less right than the dense one and more."""
    task, net = mine["task"], mine["model"].eval()
    whole, worse = task.evaluate(net), copy.deepcopy(net)
    with torch.no_grad():
        while task.evaluate(worse).value > whole.value - 0.02:
            worse[-1].bias[0] += 0.2
    build = SimpleNamespace(
        task=task,
        options=SimpleNamespace(batch=32),
        budget=SimpleNamespace(max_drop=max_drop),
        validation=lambda: whole,
    )

    def opened(module):
        return lambda inputs: [module(torch.from_numpy(inputs["input"])).detach().numpy()]

    accepted = acceptance(build, worse, role, "int8")(opened(worse))
    assert accepted == (max_drop is None), "without a budget of accuracy it is held against its own network"
    assert acceptance(build, net, role, "int8")(opened(net))
    if max_drop:
        build.budget.max_drop = 100.0
        assert acceptance(build, worse, role, "int8")(opened(worse))
        build.budget.max_drop = max_drop
        rung = acceptance(build, worse, "compressed", "int8", rung=2)
        assert rung(opened(worse)), "a rung of the ladder is meant to lose more"


def test_auto_races_every_precision_of_the_target_and_loses_no_more_than_allowed(mine, tmp_path):
    ld.build(options(tmp_path, precision="auto"), until="precision", **mine)
    record = PrecisionRecord.load(tmp_path / "precision.json")
    assert [each.precision for each in record.trials] == ["fp32", "fp16", "int8"]
    exact, *lower = record.trials
    for each in lower:
        assert each.ratio is not None
        assert each.size_bytes < exact.size_bytes
        assert (each.refused is None) == each.ratio.faster
        assert exact.accuracy.value - each.accuracy.value <= 0.01
    assert record.chosen == min(record.trials, key=lambda each: 1.0 if each.refused else each.relative_time).precision


def test_where_the_target_is_not_at_hand_auto_goes_by_the_estimate(mine, tmp_path):
    ld.build(options(tmp_path, precision="auto", target="jetson-orin-nano"), until="precision", **mine)
    record = PrecisionRecord.load(tmp_path / "precision.json")
    assert all(each.ratio is None for each in record.trials)
    estimates = [each.estimated for each in record.trials]
    assert estimates[0] == 1.0
    assert sorted(estimates, reverse=True) == estimates
    assert record.chosen == "int8"


@pytest.fixture(scope="module")
def built(mine, tmp_path_factory):
    """The whole build in int8 for this machine."""
    out = tmp_path_factory.mktemp("int8") / "build"
    return ld.build(options(out, precision="int8"), **mine), out


@pytest.mark.slow
def test_a_build_in_int8_keeps_what_it_promises(built):
    report, out = built
    record = PrecisionRecord.load(out / "precision.json")
    assert [each.precision for each in record.trials] == ["fp32", "int8"]
    assert report.precision == record
    assert report.shipped_precision in ("int8", "fp32")
    exact, lower = record.trials
    if report.shipped_precision == "int8":
        assert lower.ratio.faster
        assert exact.accuracy.value - lower.accuracy.value <= 0.01
        raced = ratio_between(report.receipt, report.shipped, "dense-fp32")
        assert raced.faster
        assert "in int8" in report.headline
    assert {each.name for each in report.receipt.series} >= {"compressed", "dense"}
    assert report.fidelity
    assert all(check.tolerance == TOLERANCES[report.shipped_precision] for check in report.fidelity)
    assert all(artifact.precision == report.shipped_precision for artifact in report.artifacts)


@pytest.mark.slow
def test_prices_and_plan_are_of_the_precision_that_was_chosen(built):
    report, out = built
    chosen = PrecisionRecord.load(out / "precision.json").chosen
    assert report.plan.precision == chosen
    assert all(choice.rank is None or choice.rank % (16 if chosen == "int8" else 8) == 0 for choice in report.plan.choices)


@pytest.mark.slow
def test_what_ships_is_what_was_named(built):
    report, out = built
    model = (out / "model.onnx").read_bytes()
    stem = report.shipped if report.shipped_precision == report.plan.precision else f"{report.shipped}-fp32"
    assert model == (out / f"{stem}.onnx").read_bytes()
    manifest = check_bundle(out / "bundle")
    assert (out / "bundle" / manifest.artifacts[0].path).read_bytes() == model
    fidelity = FidelityReport.load(out / "fidelity.json")
    back_to_fp32 = report.shipped_precision != report.plan.precision
    assert manifest.accuracy == (fidelity.reference_accuracy if back_to_fp32 else fidelity.accuracy)
    golden = np.load(out / "golden" / "inputs.npz")
    assert len(golden.files) == 1


@pytest.mark.slow
def test_where_a_lower_precision_loses_the_race_everything_told_is_of_fp32(mine, built, tmp_path):
    out = tmp_path / "build"
    shutil.copytree(built[1], out)
    if PrecisionRecord.load(out / "precision.json").chosen != "int8":
        pytest.skip("int8 was not faster for the dense network here")
    receipt = Receipt.load(out / "receipt.json")
    slower = {"compressed": 0.9, "dense-fp32": 0.8, "compressed-fp32": 0.4}
    receipt.model_copy(update={"ratios": tuple(ratio(name, value) for name, value in slower.items())}).save(
        out / "receipt.json"
    )
    report = gather(Build(options(out, precision="int8"), **mine))
    assert (report.shipped, report.shipped_precision) == ("compressed", "fp32")
    assert "2.00x faster" in report.headline
    assert "int8 was not faster" in report.headline
    assert [each.path for each in report.artifacts] == ["compressed-fp32.onnx", "dense-fp32.onnx"]
    assert {check.tolerance for check in report.fidelity} == {TOLERANCES["fp32"]}
    assert report.accuracy == FidelityReport.load(out / "fidelity.json").reference_accuracy
    (export,) = [step for step in report.ledger if step.step == "export"]
    assert export.against == "compressed-fp32.onnx against torch"
