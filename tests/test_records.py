"""Documents: strict, versioned, whole or not there."""

import json
import os
import stat

import pytest

from lorita_deploy.errors import BadRecord, OutOfResource
from lorita_deploy.records import Budget, Choice, Document, Geometry, LatencyRatio, Plan, schema_name, write_atomically


@pytest.fixture
def plan():
    choice = Choice(layer="conv", form="pair", k_in=64, k_out=64, rank=16, predicted_loss=0.01, us=10.0, dense_us=30.0)
    return Plan(
        model="net",
        network_sha256="0" * 64,
        target="cpu",
        precision="fp32",
        budget=Budget(max_drop=1.0),
        provenance="measured",
        dense_us=100.0,
        predicted_us=80.0,
        predicted_loss=0.01,
        groups=(),
        choices=(choice,),
        solver="HiGHS: optimal, gap 0",
    )


def test_a_plan_survives_the_disk(plan, tmp_path):
    path = plan.save(tmp_path / "plan.json")
    assert Plan.load(path) == plan
    assert schema_name(path) == "plan"
    assert Plan.load(path).digest() == plan.digest()


def test_the_file_format_is_this(plan):
    """A golden file: changing it is changing the format, which needs a new version and a reader of the old one."""
    body = json.loads(plan.to_json())
    assert body["schema"] == "lorita-deploy/plan/1"
    assert list(body) == [
        *"schema model network_sha256 target precision budget provenance dense_us predicted_us predicted_loss groups".split(),
        *"choices solver probes predictions notes".split(),
    ]
    assert body["choices"] == [
        {
            "layer": "conv",
            "form": "pair",
            "k_in": 64,
            "k_out": 64,
            "rank": 16,
            "predicted_loss": 0.01,
            "us": 10.0,
            "dense_us": 30.0,
        }
    ]


def _edited(plan, tmp_path, **changes):
    body = json.loads(plan.to_json())
    body.update(changes)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({key: value for key, value in body.items() if value is not ...}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"model": ...}, "model: Field required"),
        ({"dense_us": "fast"}, "dense_us: Input should be a valid number"),
        ({"schema": "lorita-deploy/plan/2"}, "newer lorita-deploy"),
        ({"schema": "lorita-deploy/receipt/1"}, "schema is 'lorita-deploy/receipt/1', expected"),
        ({"schema": ...}, "schema is None"),
    ],
)
def test_whatever_is_wrong_is_named(plan, tmp_path, changes, message):
    path = _edited(plan, tmp_path, **changes)
    with pytest.raises(BadRecord, match=message) as caught:
        Plan.load(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": ' + b"[" * 100_000])
def test_damaged_files_are_bad_records(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(BadRecord):
        Plan.load(path)
    with pytest.raises(BadRecord):
        schema_name(path)


def test_a_missing_file_is_a_bad_record(tmp_path):
    with pytest.raises(BadRecord, match="cannot read"):
        Plan.load(tmp_path / "none.json")


def test_writing_replaces_whole_files_and_keeps_permissions(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [each.name for each in path.parent.iterdir()] == ["file"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OutOfResource, match="cannot write"):
        write_atomically(tmp_path / "file", b"a folder is in the way")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_every_document_names_its_schema_once():
    def all_documents(cls):
        for each in cls.__subclasses__():
            yield each
            yield from all_documents(each)

    schemas = [each.SCHEMA for each in all_documents(Document) if each.__module__.startswith("lorita_deploy.records.")]
    assert len(schemas) == len(set(schemas)) >= 12


def test_geometry_as_a_matrix():
    conv = Geometry(kind="conv2d", out_channels=64, in_channels=32, kernel=(3, 3), in_shape=(16, 16), out_shape=(8, 8))
    assert (conv.m, conv.n, conv.positions) == (64, 288, 64)
    linear = Geometry(kind="linear", out_channels=10, in_channels=64)
    assert (linear.m, linear.n, linear.positions) == (10, 64, 1)


@pytest.mark.parametrize(
    ("ci95", "never_slower", "faster"), [((0.5, 0.6), True, True), ((0.99, 1.02), True, False), ((0.9, 1.03), False, False)]
)
def test_what_a_ratio_allows_to_say(ci95, never_slower, faster):
    ratio = LatencyRatio(candidate="a", baseline="b", n=10, reloads=6, ratio=sum(ci95) / 2, ci95=ci95)
    assert (ratio.never_slower, ratio.faster) == (never_slower, faster)
    few = ratio.model_copy(update={"n": 5})  # their range is no 95 % interval
    assert not few.never_slower
    assert not few.faster
