"""What recovery may do to a network: make it better, or leave it alone."""

import numpy as np
import torch
from PIL import Image
from torch import nn

import lorita_deploy as ld
from lorita_deploy.networks import read_weights
from lorita_deploy.pipeline import Watch, build, recovery
from lorita_deploy.pipeline.options import make_options
from lorita_deploy.records import Accuracy, CollapsedRecord, CompressedRecord, Plan


class Notes(Watch):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


def test_recovery_that_costs_right_answers_is_undone(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4)).eval()
    inputs = [(torch.randn(16, 64),) for _ in range(4)]

    def compress(epochs, slope):
        """With a judge who likes each network better (or worse) than those before."""
        seen = []

        def judge(network):
            if (weights := [parameter.tolist() for parameter in network.parameters()]) not in seen:
                seen.append(weights)
            return Accuracy(metric="score", split="validation", correct=0.5 + slope * seen.index(weights) / 1000, total=1)

        task, notes = ld.Task(examples=(inputs[0][0][:1],), calibration=inputs, evaluate=judge), Notes()
        options = make_options(model="own", target="jetson", out=str(tmp_path), speedup=1.1, recover_epochs=epochs)
        build(options, until="compress", model=module, task=task, watch=notes)
        record = CompressedRecord.load(tmp_path / "compressed.json")
        return read_weights(tmp_path / "compressed.safetensors"), record, " ".join(notes.said)

    plain, record, _ = compress(0, 1)
    assert record.truncated is None
    better, record, said = compress(1, 1)
    assert not all(torch.equal(plain[name], better[name]) for name in plain)
    assert record.accuracy[0].value > record.truncated.value
    assert "recovery" not in said
    worse, record, said = compress(2, -1)
    assert all(torch.equal(plain[name], worse[name]) for name in plain)
    assert record.accuracy[0] == record.truncated
    assert "recovery won no right answers back" in said


def test_with_recovery_the_budget_reaches_further(tmp_path, monkeypatch):
    """The network of fewest multiply-adds that keeps --max-drop is smaller where it may be distilled; and it does keep it."""

    def compress(**more):
        options = make_options(
            model="fcn",
            target="jetson",
            epochs=4,
            calibration_samples=128,
            max_drop=0.5,
            objective="macs",
            out=str(tmp_path),
            **more,
        )
        build(options, until="compress")
        return CompressedRecord.load(tmp_path / "compressed.json"), Plan.load(tmp_path / "plan.json")

    plain, _ = compress()
    record, plan = compress(recover_epochs=2)
    assert record.macs < 0.95 * plain.macs
    chosen = [probe for probe in plan.probes if probe.recovered and probe.accepted][-1]
    assert record.accuracy[0] == chosen.accuracy
    dense = CollapsedRecord.load(tmp_path / "collapsed.json").accuracy[0]
    assert record.accuracy[0].value >= dense.value - 0.005
    assert record.truncated.value < dense.value - 0.005, "without recovery it would not have been chosen"
    assert chosen.recovered == 2

    # What was judged is what is there: nothing is trained again.
    written = (tmp_path / "compressed.safetensors").read_bytes()
    (tmp_path / "stages" / "compress.json").unlink()
    monkeypatch.setattr(recovery, "distill", None)
    compress(recover_epochs=2)
    assert (tmp_path / "compressed.safetensors").read_bytes() == written
    assert len(list((tmp_path / "recovered").iterdir())) == 1, "other plans' networks are gone"

    notes, given = Notes(), tmp_path / "given.json"
    plan.save(given)
    options = make_options(model="fcn", target="jetson", epochs=4, calibration_samples=128, plan=str(given), out=str(tmp_path))
    build(options, until="plan", watch=notes)
    assert "--recover-epochs 2" in " ".join(notes.said)


def fcn(folder, **changes):
    options = {"model": "fcn", "target": "jetson", "epochs": 2, "calibration_samples": 128, "speedup": 1.5}
    return make_options(**{**options, "out": str(folder), **changes})


def test_another_criterion_compresses_anew(tmp_path):
    """A given plan says nothing of the weights, and moments are the same whatever the criterion."""
    given = tmp_path / "given.json"
    build(fcn(tmp_path / "out"), until="compress")
    Plan.load(tmp_path / "out" / "plan.json").save(given)
    found = {}
    for criterion in ("whitened", "svd"):
        build(fcn(tmp_path / "out", plan=str(given), criterion=criterion), until="compress")
        found[criterion] = read_weights(tmp_path / "out" / "compressed.safetensors")
    assert found["svd"].keys() == found["whitened"].keys()
    assert not all(torch.equal(tensor, found["svd"][name]) for name, tensor in found["whitened"].items())


def test_the_papers_rule_keeps_the_channels(tmp_path):
    """It is in no unit of loss, so what channels cost could not be added to it."""
    build(fcn(tmp_path, criterion="paper"), until="plan")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.changed()
    assert not plan.groups


def test_other_calibration_images_calibrate_anew(tmp_path):
    images = tmp_path / "images"
    images.mkdir()

    def moments(seed):
        generator = np.random.default_rng(seed)
        for number in range(24):
            Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(images / f"{number}.png")
        build(fcn(tmp_path / "out", data="digits", calibration=str(images)), until="calibrate")
        return (tmp_path / "out" / "calibration.safetensors").read_bytes()

    assert moments(0) != moments(1)


def test_a_recovery_that_diverges_leaves_the_network_as_it_was_cut(tmp_path):
    """As where a network overflows while it is trained, though not as it stands."""

    class Overflowing(nn.Sequential):
        def forward(self, x):
            found = super().forward(x)
            return found * torch.inf if torch.is_grad_enabled() and len(x) == 3 else found

    torch.manual_seed(0)
    module = Overflowing(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4)).eval()
    batches = [(torch.randn(16, 64),) for _ in range(4)]

    batches.append((torch.randn(3, 64),))  # calibration does not get that far
    judged = Accuracy(metric="score", split="validation", correct=1.0, total=1)
    task = ld.Task(examples=(batches[0][0][:1],), calibration=batches, evaluate=lambda net: judged)
    shared = {"model": "own", "target": "jetson", "out": str(tmp_path), "speedup": 1.1, "calibration_samples": 64}
    build(make_options(**shared), until="compress", model=module, task=task)
    bare, notes = read_weights(tmp_path / "compressed.safetensors"), Notes()
    build(make_options(**shared, recover_epochs=1), until="compress", model=module, task=task, watch=notes)
    assert "could not be recovered: the distillation loss is" in " ".join(notes.said)
    kept = read_weights(tmp_path / "compressed.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in bare.items())


class Depthwise(nn.Module):
    """No layer of it can be replaced."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(10, 10, 3, padding=1, groups=10)

    def forward(self, images):
        return self.conv(images.expand(-1, 10, -1, -1)).mean((2, 3))


def test_a_network_without_a_replaceable_layer_stays_dense(tmp_path):
    digits = ld.load_dataset("digits", shape=(1, 16, 16))
    inputs = [(images,) for images, _ in digits.batches("train", 32, limit=64)]
    task = ld.Task(
        examples=(inputs[0][0][:1],),
        calibration=inputs,
        evaluate=lambda network: ld.accuracy(network, digits.batches("validation", 32), "validation"),
    )
    options = make_options(model="mine", target="jetson", out=str(tmp_path), max_drop=1.0)
    report = build(options, model=Depthwise(), task=task)
    assert report.shipped == "dense"
    assert report.headline.startswith("ships the dense network: no layer can take another form")
    assert (tmp_path / "bundle.tar.gz").exists()
