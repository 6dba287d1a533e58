"""The published JSON Schemas, held against real files."""

import json

import pytest
from pages import ROOT

from lorita_deploy.records import schema_name

PUBLISHED = ROOT / "docs" / "schemas"


def obeys(path):
    """The file's record has a published schema, and obeys it; returns the record's name."""
    jsonschema = pytest.importorskip("jsonschema", reason="pip install jsonschema")
    name = schema_name(path)
    schema = json.loads((PUBLISHED / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(json.loads(path.read_text(encoding="utf-8")))
    return name
