"""The whole corridor on real data: real training, real export, real races, small networks."""

import json
import time

import numpy as np
import onnxruntime
import pytest
import torch
from fcn_builds import Seen, begin, fcn
from safetensors.torch import save_file
from torch import nn

from lorita_deploy import pipeline
from lorita_deploy.cli.options import FAMILY, FIRST_READ
from lorita_deploy.errors import BadCheckpoint, BadNetwork, BadRecord, FolderBusy, PlanMismatch, VerificationFailed
from lorita_deploy.pipeline import STAGES, build, make_options, preview
from lorita_deploy.ports import Task
from lorita_deploy.records import Accuracy, BuildReport, Plan


def test_a_build_leaves_everything_that_was_promised(built):
    folder, report = built
    for name in (
        "data.json trained.json trained.safetensors collapsed.json collapsed.safetensors calibration.json "
        "candidates.json prices.json plan.json compressed.json compressed.safetensors dense.onnx model.onnx "
        "golden/inputs.npz fidelity.json receipt.json bundle.tar.gz bundle/manifest.json report.json report.md"
    ).split():
        assert (folder / name).is_file(), name
    assert BuildReport.load(folder / "report.json") == report
    assert [stage.name for stage in report.stages] == list(STAGES)[:-1]
    assert report.provenance == "measured"
    assert report.headline in (folder / "report.md").read_text()
    assert not list(folder.rglob("*.part"))


def test_what_ships_is_never_slower_and_computes_the_same(built):
    folder, report = built
    ratio = report.receipt.ratios[0]
    assert ratio.never_slower or report.shipped == "dense"
    assert all(check.passed for check in report.fidelity)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    golden = np.load(folder / "golden" / "inputs.npz")["input"]
    expected = np.load(folder / "golden" / f"outputs-{report.shipped}.npz")["output"]
    got = np.concatenate([session.run(None, {"input": x[None]})[0] for x in golden])
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())


def test_the_plan_was_searched_by_true_accuracy(built):
    _, report = built
    plan = report.plan
    assert plan.probes
    assert plan.changed(), "LoRITa's fcn on digits can be compressed"
    allowed = report.validation["dense"].value - plan.budget.max_drop / 100
    assert report.validation["compressed"].value >= allowed - 1e-9
    for choice in plan.changed():
        assert choice.us < choice.dense_us, "a pair that is slower than its layer is never planned"


def test_a_second_run_finds_every_stage_done(built):
    folder, report = built
    seen = Seen()
    assert build(fcn(folder), watch=seen) == report
    assert seen.cached == list(STAGES)
    assert seen.run == []
    assert all(stage.cached for stage in preview(fcn(folder)))


def test_another_budget_runs_only_what_depends_on_it(built):
    folder, _ = built
    options = fcn(folder, speedup=1.05)
    cached = [stage.name for stage in preview(options) if stage.cached]
    assert cached == ["data", "train", "collapse", "calibrate", "precision", "price"]


LATER = (
    *(
        ("train", name, value)
        for name, value in {
            "max_drop": 2.0,
            "narrow": False,
            "criterion": "svd",
            "local_search": 2,
            "recover_epochs": 1,
        }.items()
    ),
    *(("train", name, value) for name, value in {"speedup": 1.1, "precision": "int8", "opset": 16, "batch": 4}.items()),
    *(("train", "simplify", False), ("export", "rungs", 2), ("export", "require_speedup", 1.1)),
)


@pytest.mark.parametrize(("command", "option", "value"), LATER, ids=[option for _, option, _ in LATER])
def test_an_option_that_a_help_page_leaves_out_does_nothing_yet(built, command, option, value):
    folder, _ = built
    assert FAMILY.index(FIRST_READ[option]) == FAMILY.index(command) + 1
    assert all(stage.cached for stage in preview(fcn(folder, **{option: value}), until=command))


def test_an_edited_file_is_set_aside_and_made_again(built):
    folder, _ = built
    text = (folder / "plan.json").read_text()
    edited = json.loads(text)
    edited["notes"] = ["mine"]
    (folder / "plan.json").write_text(json.dumps(edited))
    seen = Seen()
    build(fcn(folder), until="plan", watch=seen)
    assert seen.run == ["plan"]
    assert "plan.edited.json" in seen.notes[0]
    assert json.loads((folder / "plan.edited.json").read_text())["notes"] == ["mine"]
    assert (folder / "plan.json").read_text() == text


def test_a_plan_can_be_fed_back_and_one_of_another_network_is_refused(built, tmp_path):
    folder, _ = built
    plan = Plan.load(folder / "plan.json")
    mine = plan.model_copy(update={"notes": ("edited by hand",)}).save(tmp_path / "mine.json")
    build(fcn(folder, plan=str(mine)), until="compress")
    assert Plan.load(folder / "plan.json").notes == ("edited by hand",)
    plan.model_copy(update={"network_sha256": "0" * 64}).save(mine)
    with pytest.raises(PlanMismatch):
        build(fcn(folder, plan=str(mine)), until="plan")
    mine.write_text(mine.read_text()[:200])
    with pytest.raises(BadRecord, match="JSON"):
        build(fcn(folder, plan=str(mine)), until="plan")
    build(fcn(folder))


def test_a_build_held_by_another_is_refused(built):
    folder, _ = built
    with pipeline.context.BuildFolder(folder).held(), pytest.raises(FolderBusy):
        build(fcn(folder))


def test_a_build_killed_while_training_resumes_to_the_same_weights(built, tmp_path):
    """The killed build's training goes on from its last epoch, and everything comes out as in the undisturbed build."""
    folder, _ = built
    victim = begin(tmp_path)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob("training/*/*.safetensors")):
        assert victim.poll() is None, "the build ended before it could be killed"
        time.sleep(0.02)
    victim.kill()
    victim.communicate()
    assert not (tmp_path / "trained.json").exists()
    seen = Seen()
    build(fcn(tmp_path), until="collapse", watch=seen)
    assert seen.cached == ["data"]
    assert (tmp_path / "collapsed.safetensors").read_bytes() == (folder / "collapsed.safetensors").read_bytes()


# ---------------------------------------------------------------------------------------------- a network somebody has


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of unlabelled photographs-to-be: noise at several scales."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(24):
        coarse = generator.integers(0, 256, (4 + index % 5, 4 + index % 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def test_a_network_that_was_trained_elsewhere(images, tmp_path):
    """No training, no labels: agreement with the dense network, called that."""
    torch.manual_seed(1)
    options = make_options(
        model="resnet20",
        target="cpu",
        out=str(tmp_path / "out"),
        checkpoint=str(tmp_path / "w.safetensors"),
        train=False,
        calibration=str(images),
        classes=10,
    )
    save_file(pipeline.context.Build(options).spec.build(10, 32).state_dict(), tmp_path / "w.safetensors")
    report = build(options)
    assert report.validation["dense"] == Accuracy(metric="agreement", split="calibration", correct=12, total=12)
    assert report.validation["compressed"].metric == "agreement"
    ratio = report.receipt.ratios[0]
    assert ratio.never_slower or report.shipped == "dense"


def test_a_checkpoint_of_another_architecture_is_refused(images, tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    options = make_options(
        model="resnet20",
        out=str(tmp_path),
        checkpoint=str(tmp_path / "w.safetensors"),
        train=False,
        calibration=str(images),
        classes=10,
    )
    with pytest.raises(BadCheckpoint, match="1 unexpected: weight"):
        build(options, until="collapse")


# ---------------------------------------------------------------------------------------------- one's own module and task


class TwoInputs(nn.Module):
    """A regression on two inputs."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())
        self.facts = nn.Linear(4, 64)
        self.head = nn.Linear(64, 2)

    def forward(self, image, facts):
        return self.head(self.image(image).mean((2, 3)) + self.facts(facts))


def test_several_inputs_and_no_classes(tmp_path):
    torch.manual_seed(0)
    module = TwoInputs().eval()
    batches = [(torch.randn(16, 1, 16, 16), torch.randn(16, 4)) for _ in range(4)]
    with torch.inference_mode():
        targets = [module(*batch) for batch in batches]

    def evaluate(network):
        with torch.inference_mode():
            errors = [(network(*batch) - target).square().mean() for batch, target in zip(batches, targets, strict=True)]
        return Accuracy(metric="score", split="validation", correct=float(1 - torch.stack(errors).mean()), total=1)

    task = Task(
        examples=tuple(x[:1] for x in batches[0]),
        calibration=batches,
        evaluate=evaluate,
        input_names=("image", "facts"),
        output_names=("estimate",),
    )
    options = make_options(model="two-inputs", target="cpu", out=str(tmp_path), max_drop=1.0)
    report = build(options, model=module, task=task)
    assert report.validation["dense"].value == pytest.approx(1.0)
    assert report.validation["compressed"].value >= 0.99
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [x.name for x in session.get_inputs()] == ["image", "facts"]
    assert [x.name for x in session.get_outputs()] == ["estimate"]


class Nested(nn.Module):
    """An answer, and beside it what it came of, as recurrent networks do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 10)

    def forward(self, x):
        hidden = self.first(x).relu()
        return self.second(hidden), (hidden, None)


def nested():
    torch.manual_seed(0)
    batches = [(torch.randn(32, 64),) for _ in range(4)]
    module = Nested().eval()
    expected = [module(x)[0].argmax(1) for (x,) in batches]

    def evaluate(network):
        device = next(network.parameters()).device  # as is usual, and asked of opened artifacts too
        found = [network(x.to(device)) for (x,) in batches]
        right = sum(int((y[0].argmax(1) == e).sum()) for y, e in zip(found, expected, strict=True))
        return Accuracy(metric="accuracy", split="validation", correct=right, total=128)

    names = ("answer", "hidden")
    task = Task(
        (batches[0][0][:1],), batches, evaluate, output_names=names, loss=lambda outputs, _: outputs[0].square().sum(1).mean()
    )
    return module, task


def test_nested_outputs_and_an_evaluator_that_asks_for_the_device(tmp_path):
    module, task = nested()
    options = make_options(model="nested", target="jetson", out=str(tmp_path), speedup=1.5, precision="fp16")
    build(options, until="verify", model=module, task=task)
    session = onnxruntime.InferenceSession(str(tmp_path / "dense.onnx"))
    assert [x.name for x in session.get_outputs()] == ["answer", "hidden"]


def test_a_network_in_half_precision_is_refused(tmp_path):
    module, task = nested()
    options = make_options(model="nested", target="jetson", out=str(tmp_path))
    with pytest.raises(BadNetwork, match=r"first\.weight is of type bfloat16\n.*\n.*network\.float\(\)"):
        build(options, until="collapse", model=module.bfloat16(), task=task)


def test_verification_failure_stops_the_build(built, monkeypatch):
    """A tolerance nobody can meet must fail the build, with the largest difference named."""
    folder, _ = built
    monkeypatch.setattr(pipeline.shipping, "TOLERANCES", {"fp32": 1e-12})
    with pytest.raises(VerificationFailed):
        build(fcn(folder), until="verify")
    monkeypatch.undo()
    build(fcn(folder))
