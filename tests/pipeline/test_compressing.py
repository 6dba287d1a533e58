"""What recovery may do to a network: make it better, or leave it alone."""

import itertools

import pytest
import torch
from torch import nn

import lorita_deploy as ld
from lorita_deploy.networks import read_weights
from lorita_deploy.pipeline import Watch, build
from lorita_deploy.pipeline.options import make_options
from lorita_deploy.records import Accuracy, CompressedRecord


class Notes(Watch):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


@pytest.mark.parametrize(("slope", "kept"), [(1, True), (-1, False)], ids=["better", "worse"])
def test_recovery_that_costs_right_answers_is_undone(tmp_path, slope, kept):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4)).eval()
    inputs = [(torch.randn(16, 64),) for _ in range(4)]

    def compress(epochs):
        """With a judge who likes each network better (or worse) than the one before."""
        calls = itertools.count(1)

        def judge(network):
            return Accuracy(metric="score", split="validation", correct=0.5 + slope * next(calls) / 1000, total=1)

        task = ld.Task(examples=(inputs[0][0][:1],), calibration=inputs, evaluate=judge)
        folder, notes = tmp_path / f"recover-{epochs}", Notes()
        options = make_options(model="own", target="jetson", out=str(folder), speedup=1.2, recover_epochs=epochs)
        build(options, until="compress", model=module, task=task, watch=notes)
        record = CompressedRecord.load(folder / "compressed.json")
        return read_weights(folder / "compressed.safetensors"), record, notes.said

    plain, _, _ = compress(0)
    weights, record, said = compress(1)
    assert plain.keys() == weights.keys()
    same = all(torch.equal(plain[name], weights[name]) for name in plain)
    assert same is not kept
    assert record.truncated is not None
    assert (record.accuracy[0].value > record.truncated.value) is kept
    assert any("recovery made it worse" in text for text in said) is not kept
