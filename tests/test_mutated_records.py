"""Mutated records: each is read and shown, or refused with the file and the entry named."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import strategies as st
from mutations import clear, edits, mutated, rewrites, rewritten, tiers, written
from rich.console import Console

from lorita_deploy.cli.screen import as_json
from lorita_deploy.cli.showing import tables_of
from lorita_deploy.compress.plan import check_plan
from lorita_deploy.errors import BadRecord, LoritaDeployError, PlanMismatch
from lorita_deploy.inspection.files import look_at
from lorita_deploy.measure.compare import compare
from lorita_deploy.pipeline.again import read_receipt
from lorita_deploy.pipeline.carried import require_same_artifacts
from lorita_deploy.records import ArtifactList, CalibrationRecord, CollapsedRecord, Plan, Receipt
from lorita_deploy.report.terminal import render

RECORDS: dict[str, list] = {}
"""Name to text of the records of one real build; filled by the fixture."""


@pytest.fixture(autouse=True)
def real_records(readme_build):
    folder, _ = readme_build
    for path in sorted(folder.glob("*.json")):
        if not path.name.startswith("job-"):
            RECORDS[path.stem] = [path.read_bytes(), json.loads(path.read_text())]


def changed(name, rewriting, edit):
    """The record, rewritten as JSON, or with other bytes."""
    content, body = RECORDS[name]
    text = mutated(content, edit) if edit else json.dumps(rewritten(body, rewriting)).encode()
    return written("mine.json", text)


def shown(record, path):
    """All that ``inspect`` does with it; what it prints as JSON is a record again."""
    text = record.to_json()
    assert type(record).parse(text, where=path) == record
    for table in tables_of(record, path):
        Console(file=io.StringIO(), width=80).print(render(table, 80))


either = st.one_of(st.tuples(rewrites, st.just([])), st.tuples(st.just([]), edits))


@tiers(either)
def test_plans(how):
    """A plan that was mended by hand fits the network, or what does not fit is named."""
    path = changed("plan", *how)
    collapsed = CollapsedRecord.parse(RECORDS["collapsed"][0], where="collapsed.json")
    groups = CalibrationRecord.parse(RECORDS["calibration"][0], where="calibration.json").groups
    geometries = {layer.name: layer.geometry for layer in collapsed.layers}
    try:
        plan = Plan.load(path)
    except BadRecord as error:
        clear(error, path)
        return
    try:
        check_plan(plan, collapsed.layers, collapsed.weights_sha256, "cpu", groups)
    except PlanMismatch as error:
        clear(error)
        return
    for choice in plan.choices:
        geometry = geometries[choice.layer]
        assert choice.rank is None or 1 <= choice.rank <= min(geometry.m, geometry.n)
        assert 1 <= choice.k_in <= geometry.in_channels
        assert 1 <= choice.k_out <= geometry.out_channels


@tiers(either)
def test_receipts(how):
    """A receipt that was carried here by hand: compared, shown and held against the artifacts."""
    path = changed("receipt", *how)
    ours = Receipt.parse(RECORDS["receipt"][0], where="receipt.json")
    artifacts = ArtifactList.parse(RECORDS["artifacts"][0], where="artifacts.json").artifacts
    try:
        found = Receipt.load(path)
    except BadRecord as error:
        clear(error, path)
        return
    shown(found, path)
    for use in (lambda: compare(ours, found), lambda: require_same_artifacts(found, artifacts, Path("r.json"))):
        try:
            use()
        except LoritaDeployError as error:
            clear(error, codes=(2, 3))


@tiers(st.integers(0, 1000), either)
def test_every_record_of_a_build(which, how):
    """Those that nobody is meant to edit as well: looked at and compared like any file that was handed in."""
    name = sorted(RECORDS)[which % len(RECORDS)]
    path = changed(name, *how)
    try:
        found = look_at(path)
    except LoritaDeployError as error:
        clear(error, path)
    else:
        shown(found, path)
        json.loads(as_json(found))
    try:
        compare(Receipt.parse(RECORDS["receipt"][0], where="receipt.json"), read_receipt(path))
    except LoritaDeployError as error:
        clear(error, codes=(2, 3))
