"""The trained networks that ship: whole, small, and as good as their records say."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

from lorita_deploy.errors import BadData
from lorita_deploy.measure.accuracy import accuracy
from lorita_deploy.networks import read_weights
from lorita_deploy.ports import find_model
from lorita_deploy.records import SampleRecord
from lorita_deploy.train.datasets import load_dataset
from lorita_deploy.train.factored import multiplied_out

FOLDER = Path(__file__).parents[2] / "sample_models" / "checkpoints"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def test_a_record_lies_beside_each_and_all_of_them_are_small() -> None:
    assert "fcn" in SHIPPED
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == SHIPPED
    sizes = [(FOLDER / f"{name}.safetensors").stat().st_size for name in SHIPPED]
    assert max(sizes) <= 10e6
    assert sum(sizes) <= 25e6


@pytest.mark.parametrize("name", SHIPPED)
def test_a_network_that_ships_is_the_one_of_its_record(name: str) -> None:
    spec = find_model(name)
    assert spec.sample is not None
    assert spec.sample.name == f"{name}.safetensors"
    record = SampleRecord.load(spec.sample.with_suffix(".json"))
    assert record == SampleRecord.load(FOLDER / f"{name}.json")
    assert hashlib.sha256(spec.sample.read_bytes()).hexdigest() == record.weights_sha256
    assert record.trained.model == name
    assert record.trained.recipe.most_factors == 3
    assert record.largest_difference <= 1e-3
    module = spec.build(len(record.data.classes), spec.input_size)
    module.load_state_dict(multiplied_out(read_weights(spec.sample)))
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_network_that_ships_answers_as_its_record_says(name: str) -> None:
    if "LORITA_DATA" not in os.environ:
        pytest.skip("LORITA_DATA names no folder of data sets")
    spec = find_model(name)
    assert spec.sample is not None
    record = SampleRecord.load(FOLDER / f"{name}.json")
    try:
        data = load_dataset(record.dataset, shape=spec.input_shape())
    except BadData as error:
        pytest.skip(str(error))
    if data.summary.content_sha256 != record.data.content_sha256:
        pytest.skip(f"{record.dataset} is not here as {record.trained_on}")
    module = spec.build(len(record.data.classes), spec.input_size).eval()
    module.load_state_dict(multiplied_out(read_weights(spec.sample)))
    found = accuracy(module, data.normalised(record.data.mean, record.data.std).batches("test", 256), "test")
    assert found.total == record.test.total
    assert abs(found.correct - record.test.correct) <= 3  # another processor rounds differently
