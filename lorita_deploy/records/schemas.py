"""JSON Schemas of the documents, drawn from the records: ``python -m lorita_deploy.records.schemas docs/schemas``.

A schema says what this version reads: entries that were added later have defaults and may be missing. What a record checks
beyond types (that phases of a recipe ascend, say) is not in it.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from .documents import Document, write_atomically

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def documents() -> dict[str, type[Document]]:
    """Every document, by the name in its schema line."""
    return {kind.SCHEMA: kind for kind in Document.__subclasses__() if kind.__module__.startswith(f"{__package__}.")}


def json_schema(kind: type[Document]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one document's file."""
    body = kind.model_json_schema(schema_generator=_Described)
    body["title"] = kind.schema_id()
    body["properties"] = {"schema": {"const": kind.schema_id()}, **body["properties"]}
    body["required"] = ["schema", *body.get("required", [])]
    return {"$schema": DIALECT, **body}


def write_schemas(folder: Path) -> list[Path]:
    """One file for each document: ``<name>.schema.json``. Raises `OutOfResource`."""
    written = []
    for name, kind in sorted(documents().items()):
        path = folder / f"{name}.schema.json"
        write_atomically(path, (json.dumps(json_schema(kind), indent=1, ensure_ascii=False) + "\n").encode())
        written.append(path)
    return written


class _Described(GenerateJsonSchema):
    """With what the source says below each entry, and without titles that only repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found = super().model_schema(schema)
        for name, said in _below_the_fields(schema["cls"]).items():
            found["properties"][name]["description"] = said
        return found


def _below_the_fields(kind: type[Any]) -> dict[str, str]:
    """The docstrings of a class's fields: Python keeps those of classes only."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
