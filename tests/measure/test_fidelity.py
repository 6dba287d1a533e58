"""Fidelity: figures by hand, what must never pass, and real artifacts of several outputs and batch sizes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lorita_deploy.errors import BadNetwork, VerificationFailed
from lorita_deploy.measure.fidelity import (
    NOT_A_NUMBER,
    compare_outputs,
    random_like,
    require_passed,
    run_session,
    verify,
)
from lorita_deploy.ports import ExportJob, find_exporter
from lorita_deploy.records import FidelityReport

A = np.array([[1.0, 2.0], [4.0, 3.0]], np.float32)


def compare(reference: Any, got: Any, tolerance: float = 1e-3) -> Any:
    return compare_outputs([reference], [got], role="dense", inputs="real", tolerance=tolerance)


def test_figures_by_hand() -> None:
    found = compare(A, A + np.array([[0.0, 0.5], [0.0, 0.0]], np.float32))
    assert (found.max_abs, found.max_rel) == (0.5, 0.125)
    assert found.cosine == pytest.approx((1 * 1 + 2 * 2.5) / math.sqrt(5 * (1 + 2.5**2)))
    assert found.top1_agreement == 1.0
    assert found.examples == 2
    assert not found.passed
    flipped = compare(A, A[:, ::-1])
    assert flipped.top1_agreement == 0.0


def test_equal_outputs_pass_also_when_they_are_zero() -> None:
    for values in (A, np.zeros((2, 3), np.float32), np.array([[1, 2]], np.int64)):
        found = compare(values, values.copy())
        assert found.passed
        assert (found.max_abs, found.max_rel, found.top1_agreement) == (0.0, 0.0, 1.0)
        assert found.cosine == pytest.approx(1.0)


def test_zeros_expected_and_something_else_found() -> None:
    found = compare(np.zeros((2, 2), np.float32), A)
    assert found.max_rel == 4.0  # nothing to be relative to: the absolute difference stands
    assert not found.passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_a_number_never_passes(bad: float, side: int, tmp_path: Path) -> None:
    """On either side, and on both: NaN where the network gives NaN too is no agreement."""
    damaged = A.copy()
    damaged[0, 0] = bad
    for pair in ((damaged, damaged), (damaged, A) if side else (A, damaged)):
        found = compare(*pair, tolerance=1.0)
        assert found.max_rel == found.max_abs == NOT_A_NUMBER
        assert not found.passed
        with pytest.raises(VerificationFailed, match="NaN"):
            require_passed([found], tmp_path)
        FidelityReport(artifacts=(), checks=(found,)).save(tmp_path / "fidelity.json")  # JSON has no NaN


def test_other_shapes_and_missing_outputs_never_pass() -> None:
    assert not compare(A, A[:1]).passed
    assert not compare(A, A[:, :, None]).passed
    assert not compare_outputs([A, A], [A], role="dense", inputs="real").passed
    assert not compare_outputs([A], [], role="dense", inputs="real").passed


def test_a_wrong_small_output_is_not_hidden_by_a_large_one() -> None:
    found = compare_outputs([1000 * A, A], [1000 * A, A + 0.1], role="dense", inputs="real")
    assert found.max_rel == pytest.approx(0.1 / 4, rel=1e-3)


def test_the_worst_difference_is_named(tmp_path: Path) -> None:
    checks = [compare(A, A), compare(A, A * 1.5), compare(A, A * 1.1)]
    require_passed(checks[:1], tmp_path)
    with pytest.raises(
        VerificationFailed, match=r"dense artifact differs by 0\.5 of the largest output \(tolerance 0\.001\)"
    ) as caught:
        require_passed(checks, tmp_path / "model.onnx")
    assert "model.onnx" in str(caught.value)
    assert caught.value.exit_code == 4


def test_random_inputs_look_like_the_real_ones() -> None:
    pictures = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 + 5
    words = torch.tensor([[7, 7, 9]] * 16)
    drawn = random_like((pictures, words), 64, seed=1)
    assert drawn[0].shape == (64, 3, 8, 8)
    assert drawn[0].dtype == np.float32
    assert drawn[0].mean() == pytest.approx(5, abs=0.1)
    assert drawn[0].std() == pytest.approx(3, abs=0.1)
    assert drawn[1].shape == (64, 3)
    assert set(drawn[1].reshape(-1)) == {7, 9}
    assert random_like((pictures.exp(),), 8, seed=1)[0].min() > 0
    assert random_like((torch.zeros(4, 5),), 8, seed=1)[0].std() > 0.5
    again = random_like((pictures, words), 64, seed=1)
    assert all((one == other).all() for one, other in zip(drawn, again, strict=True))


def test_chunks_of_a_fixed_batch_are_put_together_in_order() -> None:
    fed: list[int] = []

    def session(feeds: Any) -> list[Any]:
        fed.append(len(feeds["x"]))
        return [feeds["x"] * 2, feeds["x"].sum(1)]

    x = np.arange(14.0).reshape(7, 2)
    for batch in (1, 3, 7, 10):
        fed.clear()
        doubled, summed = run_session(session, {"x": x}, batch)
        assert (doubled == x * 2).all()
        assert (summed == x.sum(1)).all()
        assert set(fed) == {batch}


class TwoHeads(nn.Module):
    """Dropout shows whether evaluation mode was used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.drop(self.body(x).relu())
        return self.head(y), y


def exported(folder: Path, network: nn.Module, **options: Any) -> Any:
    exporter = find_exporter("onnx")
    job = ExportJob(
        folder=folder,
        filename="model.onnx",
        role="dense",
        network=network,
        examples=(torch.randn(1, 6),),
        opset=17,
        ir_version=8,
        output_names=("classes", "features"),
        simplify=False,
        **options,
    )
    return exporter.open(folder / exporter.export(job).path)


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 4}, {"dynamic_batch": True}])
def test_a_real_artifact_passes_and_a_wrong_one_fails(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = TwoHeads().train()
    session = exported(tmp_path, network, **options)
    batch = options.get("batch", 3)
    inputs = (torch.randn(10, 6),)
    checks = verify(network, session, inputs, input_names=("input",), role="dense", batch=batch)
    assert network.training
    assert [(check.inputs, check.examples) for check in checks] == [("real", 10), ("random", 8)]
    assert all(check.max_rel < 1e-5 and check.top1_agreement == 1.0 for check in checks)
    require_passed(checks, tmp_path)

    with torch.no_grad():
        network.head.bias[1] += 0.05
    wrong = verify(network, session, inputs, input_names=("input",), role="dense", batch=batch)
    assert not any(check.passed for check in wrong)


def test_a_network_that_returns_no_tensor() -> None:
    class Words(nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "seven"

    with pytest.raises(BadNetwork, match="returns a str"):
        verify(Words(), lambda feeds: [], (torch.randn(1, 2),), input_names=("x",), role="dense")
