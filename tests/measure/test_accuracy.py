"""Accuracy and agreement: exact counts on made-up networks, and the same for a real artifact as for its network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lorita_deploy.errors import BadData
from lorita_deploy.measure.accuracy import accuracy, agreement, artifact_accuracy, artifact_agreement, predictions
from lorita_deploy.ports import ExportJob, find_exporter


class Echo(nn.Module):
    """Answers the class that its input is the logits of; wrong in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        return -x if self.training else x


LOGITS = torch.eye(4)[torch.tensor([0, 1, 2, 3, 0, 1, 2])]
LABELS = torch.tensor([0, 1, 2, 3, 1, 2, 3])  # four right, three wrong
BATCHES = [(LOGITS[:3], LABELS[:3]), (LOGITS[3:], LABELS[3:])]


def test_counts() -> None:
    network = Echo().train()
    found = accuracy(network, BATCHES, "validation")
    assert (found.metric, found.split, found.correct, found.total) == ("accuracy", "validation", 4, 7)
    assert network.training


def test_agreement_with_outputs_or_with_their_classes() -> None:
    inputs = [(batch[0],) for batch in BATCHES]
    other = [torch.eye(4)[batch[1]] for batch in BATCHES]
    for reference in (other, [outputs.argmax(1) for outputs in other]):
        found = agreement(Echo(), reference, inputs, "calibration")
        assert (found.metric, found.correct, found.total) == ("agreement", 4, 7)
    assert agreement(Echo(), predictions(Echo(), inputs), inputs, "calibration").value == 1.0


def test_nothing_to_judge_is_no_hundred_per_cent() -> None:
    with pytest.raises(BadData, match="no image in the test split"):
        accuracy(Echo(), [], "test")


def test_labels_that_do_not_fit() -> None:
    with pytest.raises(BadData, match="answers for"):
        accuracy(Echo(), [(LOGITS, LABELS[:1])], "test")
    with pytest.raises(ValueError):
        agreement(Echo(), [LABELS], [(LOGITS,), (LOGITS,)], "test")


@pytest.mark.parametrize("batch", [1, 4])
def test_an_artifact_is_judged_like_its_network(tmp_path: Path, batch: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    exporter = find_exporter("onnx")
    job = ExportJob(
        folder=tmp_path,
        filename="model.onnx",
        role="dense",
        network=network,
        examples=(torch.randn(1, 6),),
        opset=17,
        ir_version=8,
        batch=batch,
        simplify=False,
    )
    session = exporter.open(tmp_path / exporter.export(job).path)
    x = torch.randn(50, 6)
    batches = [(x[:30], torch.randint(4, (30,))), (x[30:], torch.randint(4, (20,)))]
    expected = accuracy(network, batches, "test")
    assert 0 < expected.correct < 50
    assert artifact_accuracy(session, ("input",), batches, "test", batch=batch) == expected
    inputs = [(images,) for images, _ in batches]
    assert artifact_agreement(session, ("input",), predictions(network, inputs), inputs, "test", batch=batch).correct == 50
