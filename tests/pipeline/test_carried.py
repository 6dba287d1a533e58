"""What a receipt from elsewhere teaches about prices; on the documents of a real build."""

import shutil
from pathlib import Path

import pytest

from lorita_deploy.errors import BadRecord, EnvironmentDiffers, LoritaDeployError, PlanMismatch
from lorita_deploy.pipeline import build, make_options
from lorita_deploy.pipeline.again import keep_receipt
from lorita_deploy.pipeline.carried import bettered
from lorita_deploy.pipeline.context import Build
from lorita_deploy.records import CandidateTable, Plan, PriceTable, Receipt


@pytest.fixture
def better(readme_build, tmp_path):
    """``better(receipt)``: the build's prices before and after it."""
    folder: Path = readme_build[0]
    prices = PriceTable.load(folder / "prices.json")
    candidates = CandidateTable.load(folder / "candidates.json").candidates

    def call(receipt, **options):
        path = receipt.save(tmp_path / "receipt.json")
        given = make_options(**{"model": "fcn", "target": "cpu", "out": str(folder), "receipt": str(path), **options})
        return prices, bettered(Build(given), prices, candidates)

    return call


@pytest.fixture
def receipt(readme_build):
    return Receipt.load(readme_build[0] / "receipt.json")


def raced(receipt, dense_ms, ratio):
    """The receipt with these times in it."""
    series = tuple(
        each.model_copy(update={"median_ms": dense_ms if each.name == "dense" else ratio * dense_ms}) for each in receipt.series
    )
    return receipt.model_copy(update={"series": series, "ratios": (receipt.ratios[0].model_copy(update={"ratio": ratio}),)})


def test_the_plan_would_have_been_predicted_as_it_was_measured(readme_build, receipt, better):
    before, after = better(raced(receipt, dense_ms=8.0, ratio=0.7))
    assert after.network_us == pytest.approx(8000.0)
    us = {each.candidate: each.us for each in after.times}
    candidates = CandidateTable.load(readme_build[0] / "candidates.json").candidates
    keys = {(each.layer, each.form, each.k_in, each.k_out, each.rank): each.key for each in candidates}
    dense = {each.layer: us[each.key] for each in candidates if each.form == "dense"}
    changed = Plan.load(readme_build[0] / "plan.json").changed()
    assert changed
    gain = sum(us[keys[each.layer, each.form, each.k_in, each.k_out, each.rank]] - dense[each.layer] for each in changed)
    assert after.network_us + gain == pytest.approx(0.7 * 8000.0, rel=1e-6)
    assert after.provenance == before.provenance, "how the time is spread was not measured there"
    assert receipt.host.machine in after.method


def test_what_was_right_stays_as_it_was(receipt, better):
    """A receipt that says what the prices say changes nothing but the scale."""
    before, _ = better(receipt)
    once = better(raced(receipt, before.network_us / 1e3, 0.7))[1]
    twice = better(raced(receipt, 2 * before.network_us / 1e3, 0.7))[1]
    assert [2 * each.us for each in once.times] == pytest.approx([each.us for each in twice.times])


def test_another_machine_teaches_nothing(receipt, better):
    jetson = {"target": "jetson-orin-nano"}
    with pytest.raises(EnvironmentDiffers, match="another machine than a jetson-orin-nano") as caught:
        better(receipt, **jetson)
    assert caught.value.exit_code == 3
    better(receipt, trust_times=True, **jetson)
    board = receipt.host.model_copy(
        update={"machine": "NVIDIA Jetson Orin Nano Developer Kit", "system": "Linux 5.15.148-tegra aarch64"}
    )
    better(receipt.model_copy(update={"host": board}), **jetson)


def test_a_receipt_of_another_model_or_machine_is_refused_before_anything_is_computed(readme_build, receipt, tmp_path):
    """Not after minutes of training, and what is in the folder stays as it is."""
    out = tmp_path / "build"
    shutil.copytree(readme_build[0], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    path = receipt.save(tmp_path / "receipt.json")
    refused = {
        PlanMismatch: ({"model": "vgg16"}, "this receipt is of mine, not of vgg16"),
        EnvironmentDiffers: ({"model": "mine", "target": "jetson-nano"}, "another machine than a jetson-nano"),
        LoritaDeployError: ({"model": "mine", "out": str(tmp_path / "empty")}, "no build here"),
    }
    for kind, (given, words) in refused.items():
        options = make_options(**{"target": "cpu", "out": str(out), "receipt": str(path), **given})
        with pytest.raises(kind, match=words):
            build(options, until="plan")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not list((tmp_path / "empty").glob("*"))


def test_times_of_another_runtime_or_batch_are_refused_trusted_or_not(readme_build, receipt, tmp_path):
    """A board without TensorRT for Python falls back to its processor: no prices of its GPU are scaled by that."""
    out = tmp_path / "build"
    shutil.copytree(readme_build[0], out)
    refused: dict[str, dict] = {
        "of tensorrt, and the build is for onnxruntime": {"runtime": "trtexec"},
        "batches of 4, and": {"batch": 4},
        r"of 2 thread\(s\), and the build is for 1": {"threads": 2},
    }
    for words, changes in refused.items():
        other = receipt.model_copy(update={"settings": receipt.settings.model_copy(update=changes)})
        path = other.save(tmp_path / "receipt.json")
        for trust in (False, True):
            options = make_options(model="mine", target="cpu", out=str(out), receipt=str(path), trust_times=trust)
            with pytest.raises(EnvironmentDiffers, match=words):
                build(options, until="plan")


def test_a_workstations_times_do_not_pass_for_a_boards(readme_build, receipt, tmp_path):
    """The runner of a bundle for a board names the board wherever it runs; what is kept of it tells the machine."""
    folder = tmp_path / "build"
    shutil.copytree(readme_build[0], folder)
    warning = "this machine is not a jetson-orin-nano, which the bundle is made for"
    for kind, machine, system, kept, warns in (
        ("jetson-orin-nano", receipt.host.machine, receipt.host.system, "cpu", True),
        ("jetson-orin-nano", "NVIDIA Jetson Nano Developer Kit", "Linux 4.9 aarch64", "jetson-nano", True),
        ("jetson-orin-nano", "NVIDIA Jetson Orin Nano Developer Kit", "Linux 5.15 aarch64", "jetson-orin-nano", False),
        ("cpu", receipt.host.machine, receipt.host.system, "cpu", False),
        ("a-target-of-mine", receipt.host.machine, receipt.host.system, "a-target-of-mine", False),
    ):
        host = receipt.host.model_copy(update={"kind": kind, "machine": machine, "system": system})
        carried = receipt.model_copy(update={"host": host}).save(tmp_path / "carried.json")
        found, where = keep_receipt(carried, folder)
        assert found == Receipt.load(where)
        assert (found.host.kind, found.host.machine) == (kept, machine)
        assert (warning in found.warnings) == warns


def test_receipts_that_cannot_be_used(receipt, better, make_receipt, tmp_path):
    with pytest.raises(PlanMismatch, match="of other artifacts: dense, compressed"):
        better(make_receipt())
    with pytest.raises(BadRecord, match="no race of compressed against dense"):
        better(receipt.model_copy(update={"ratios": ()}))
    with pytest.raises(LoritaDeployError, match="no build here"):
        better(receipt, out=str(tmp_path / "empty"))
    stranger = receipt.series[0].model_copy(update={"name": "dense-rung1"})
    with pytest.raises(PlanMismatch, match="dense-rung1"):
        better(receipt.model_copy(update={"series": (*receipt.series, stranger)}))
