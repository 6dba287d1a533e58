"""Nothing of the machine or of its owner is in what ships: no path, no name, no secret, in no byte of it."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from fcn_builds import SMALL
from google.protobuf.message import Message

from lorita_deploy.bundle.manifest import check_bundle, unpack
from lorita_deploy.pipeline.again import bench_again
from lorita_deploy.records import Receipt

ONNX_FILES = ("model.onnx", "compressed.onnx", "dense.onnx")
REPORTS = ("plan.json", "report.json", "report.md", "report.html")
"""These are made to be shown to others."""


def contents(path: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """Every file in an archive of any depth, and the archive itself."""
    yield path, content
    if path.endswith(".tar.gz"):
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                yield f"{path}:{member.name}", f"{member.uname} {member.gname} {member.linkname}".encode()
                file = archive.extractfile(member)
                if file:
                    yield from contents(f"{path}:{member.name}", file.read())
    elif path.endswith(".npz"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                yield f"{path}:{info.filename}", info.comment + info.extra + archive.read(info)


def found_in(folder: Path, needles: set[str]) -> list[str]:
    """``file: needle`` for everything in what ships that ought not to be there, upper and lower case alike."""
    shipped = [(name, (folder / name).read_bytes()) for name in ("bundle.tar.gz", *ONNX_FILES, *REPORTS)]
    return [
        f"{place}: {needle}"
        for name, content in shipped
        for place, part in contents(name, content)
        for needle in sorted(needles)
        if needle.encode().lower() in part.lower()
    ]


def texts(message: Message) -> Iterator[tuple[str, str]]:
    """(field, text) of every text in an ONNX file."""
    for field, value in message.ListFields():
        for each in value if field.is_repeated else [value]:
            if isinstance(each, Message):
                yield from texts(each)
            elif isinstance(each, str):
                yield field.name, each


def machine() -> set[str]:
    """Where this program and its parts lie."""
    return {sys.prefix, sys.base_prefix, os.getcwd(), str(Path(onnx.__file__).parent), str(Path(__file__).parents[2])} - {"/"}


def test_nothing_of_the_machine_is_in_a_bundle(built):
    folder = built[0]
    needles = {str(folder), folder.parent.name, str(Path.home()), "ada-of-the-lab", "sesame-open-please", *machine()}
    assert found_in(folder, needles) == []
    assert found_in(folder, {"lorita-deploy"}), "it does find what is there"


def test_the_texts_of_an_onnx_file_are_all_meant_for_its_reader(built):
    for name in ONNX_FILES:
        model = onnx.load(built[0] / name)
        found = list(texts(model))
        assert not [text for field, text in found if field == "doc_string" and text], name
        assert not any(tensor.external_data for tensor in model.graph.initializer), name
        assert not [node.name for node in model.graph.node if node.metadata_props], name
        assert not [text for _, text in found if "/" in text and (text.startswith("/home") or ".py" in text)], name
        allowed = {"producer", "model", "role", "sources", "preprocessing", "classes", "ranks"}
        assert {prop.key for prop in model.metadata_props} <= allowed, name


def test_a_bundle_is_whole_and_holds_what_its_manifest_says(built, tmp_path):
    folder = unpack(built[0] / "bundle.tar.gz", tmp_path)
    assert {artifact.sha256 for artifact in check_bundle(folder).artifacts} == {
        artifact.sha256 for artifact in built[1].artifacts
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_of_another_machine_either(tmp_path):
    """With names that cannot be there by chance: of the host, the user, the home, every folder that is named on the way."""
    out, home, images = (tmp_path / name for name in ("zanzibar-build", "zanzibar-home", "zanzibar-data"))
    home.mkdir()
    write_images(images)
    options = {**SMALL, "model": "fcn", "out": out, "data": f"folder:{images}", "checkpoint": home / "weights.safetensors"}
    write_weights(home / "weights.safetensors")
    words = [str(word) for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    command = [sys.executable, "-m", "lorita_deploy", "build", *words, "--rungs", "1"]
    if (
        os.geteuid() == 0
        and shutil.which("unshare")
        and subprocess.run(["unshare", "--uts", "true"], check=False).returncode == 0
    ):
        command = ["unshare", "--uts", "sh", "-c", 'hostname zanzibar-host; exec "$@"', "sh", *command]
    named = dict.fromkeys(("USER", "LOGNAME", "HUB_TOKEN", "EMAIL"), "zanzibar-user")
    places = {"HOME": str(home), "TMPDIR": str(home)}
    done = subprocess.run(command, env={**os.environ, **named, **places}, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    host = {socket.gethostname()} if len(socket.gethostname()) > 5 else set()
    assert (
        found_in(out, {"zanzibar-build", "zanzibar-home", "zanzibar-user", "zanzibar-host", str(tmp_path), *machine()} | host)
        == []
    )


def write_images(folder: Path) -> None:
    """Two classes, of bright and of dark images."""
    import numpy as np
    from PIL import Image

    drawn = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 30)):
        for name, level in (("bright", 200), ("dark", 60)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(drawn.normal(level, 40, (28, 28)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


def write_weights(path: Path) -> None:
    from safetensors.torch import save_file

    from lorita_deploy.ports import find_model

    save_file(find_model("fcn").build(2, 28).state_dict(), path)


def test_times_taken_again_are_of_the_machine_that_the_build_named(built, tmp_path):
    folder = tmp_path / "build"
    shutil.copytree(built[0], folder)
    receipt = Receipt.load(folder / "receipt.json")
    named = receipt.host.model_copy(update={"kind": "my-own-board"})
    receipt.model_copy(update={"host": named}).save(folder / "receipt.json")
    assert bench_again(folder)[0].host.kind == "my-own-board"
    elsewhere = named.model_copy(update={"machine": "another"})
    receipt.model_copy(update={"host": elsewhere}).save(folder / "receipt.json")
    assert bench_again(folder)[0].host.kind == "cpu"
