"""JSON Schemas: those that are published are those of the records, and real files obey them."""

import copy
import json

import pytest
from pages import PAGES, ROOT, blocks, links

from lorita_deploy.doctor.machine import check_machine
from lorita_deploy.inspection.files import look_at
from lorita_deploy.inspection.loading import check_loading
from lorita_deploy.measure.compare import compare
from lorita_deploy.records import Document, schema_name
from lorita_deploy.records.schemas import documents, json_schema, write_schemas
from lorita_deploy.targets import load_target

jsonschema = pytest.importorskip("jsonschema", reason="pip install jsonschema")

PUBLISHED = ROOT / "docs" / "schemas"
PAGE = PAGES["docs/files.md"]


def validator(name):
    return jsonschema.Draft202012Validator(json_schema(documents()[name]))


def test_the_published_schemas_are_those_of_the_records(tmp_path):
    fresh = {path.name: path.read_text() for path in write_schemas(tmp_path)}
    assert {path.name for path in PUBLISHED.iterdir()} == fresh.keys()
    stale = [name for name, text in fresh.items() if (PUBLISHED / name).read_text() != text]
    assert not stale, "python -m lorita_deploy.records.schemas docs/schemas"


def test_they_are_valid_schemas_of_every_document():
    assert documents().keys() >= {"plan", "receipt", "report", "manifest", "stage"}
    for name in documents():
        jsonschema.Draft202012Validator.check_schema(validator(name).schema)
        assert validator(name).schema["title"] == documents()[name].schema_id()


def test_entries_have_what_the_source_says_of_them():
    body = validator("plan").schema
    assert body["$defs"]["GroupChoice"]["properties"]["predicted_loss"]["description"].startswith("Of taking out the others")
    assert "HiGHS" not in body["properties"]["solver"]["description"]
    assert body["description"].startswith("THE HINGE")


def test_every_record_of_a_real_build_obeys_its_schema(readme_build):
    folder, _ = readme_build
    seen = set()
    for path in sorted(folder.rglob("*.json")):
        if path.name.startswith("job-"):
            continue
        name = schema_name(path)
        seen.add(name)
        validator(name).validate(json.loads(path.read_text()))
    assert seen >= {
        *("data", "collapsed", "calibration", "precision", "candidates", "prices", "plan", "compressed"),
        *("artifacts", "fidelity", "receipt", "manifest", "report", "stage"),
    }


def test_answers_obey_theirs(readme_build, make_receipt, tmp_path):
    """What commands print with ``--json``."""
    folder, _ = readme_build
    answers = [
        look_at(folder / "model.onnx"),
        look_at(folder / "collapsed.safetensors"),
        check_loading(folder / "model.onnx", load_target("jetson")),
        check_machine(tmp_path),
        compare(make_receipt(), make_receipt(dense=2.0, compressed=1.2)),
    ]
    assert {each.SCHEMA for each in answers} == {"onnx", "checkpoint", "load-check", "health", "comparison"}
    for each in answers:
        validator(each.SCHEMA).validate(json.loads(each.to_json()))


def spoilt(body):
    """A record, each time wrong in another way."""
    for change in (
        lambda record: record.update(surprise=1),
        lambda record: record.pop("model"),
        lambda record: record.update(dense_us="fast"),
        lambda record: record.update(schema="lorita-deploy/plan/2"),
        lambda record: record["budget"].update(objective="joy"),
        lambda record: record["choices"][0].update(form="thin"),
        lambda record: record["choices"][0].pop("rank"),
        lambda record: record.update(choices=7),
    ):
        record = copy.deepcopy(body)
        change(record)
        yield record


def test_what_the_program_refuses_the_schema_refuses(readme_build):
    body = json.loads((readme_build[0] / "plan.json").read_text())
    for record in spoilt(body):
        with pytest.raises(jsonschema.ValidationError):
            validator("plan").validate(record)
        with pytest.raises(Exception, match="plan"):
            documents()["plan"].parse(json.dumps(record), where="plan")


def test_a_file_of_before_an_entry_was_added_is_still_read(readme_build):
    """What has a default may be missing, for the schema as for the program."""
    body = json.loads((readme_build[0] / "plan.json").read_text())
    for name in ("probes", "predictions", "notes"):
        body.pop(name)
    validator("plan").validate(body)
    assert documents()["plan"].parse(json.dumps(body), where="plan").notes == ()


def test_every_file_of_a_build_is_told_of(readme_build):
    folder, _ = readme_build
    for path in folder.iterdir():
        named = path.name in PAGE or f"{path.name}/" in PAGE or f"`{path.stem}.json`, `{path.suffix}`" in PAGE
        assert named or (path.stem == "report" and "`report.json`, `.md`, `.html`" in PAGE), path.name


def test_every_schema_is_linked():
    assert {f"schemas/{name}.schema.json" for name in documents()} <= set(links(PAGE))


def test_the_python_of_the_page_runs(readme_build, tmp_path, monkeypatch):
    (tmp_path / "build" / "fcn-cpu").mkdir(parents=True)
    (tmp_path / "build" / "fcn-cpu" / "plan.json").write_bytes((readme_build[0] / "plan.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks(PAGE, "python")[0], names)
    assert isinstance(names["plan"], Document)
