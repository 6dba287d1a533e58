"""Facts of machines against targets: what JetPack, TensorRT and Python say, and what to do about it."""

import platform

import pytest
from click.testing import CliRunner

from lorita_deploy.cli import cli
from lorita_deploy.doctor.stack import check_stack, cuda_version, l4t_release, this_machine, with_stack
from lorita_deploy.records import Finding, MachineFacts
from lorita_deploy.targets import load_target

ORIN = MachineFacts(
    architecture="aarch64",
    board="NVIDIA Jetson Orin Nano Developer Kit",
    cuda=True,
    l4t="36.4.3",
    versions={"python": "3.10.12", "tensorrt": "10.3.0", "cuda": "12.6.68"},
)


def findings(facts, name):
    return {each.subject: (each.state, each.found, each.fix) for each in check_stack(facts, load_target(name))}


def changed(**versions):
    kept = {name: version for name, version in {**ORIN.versions, **versions}.items() if version}
    return ORIN.model_copy(update={"versions": kept})


def test_a_board_as_its_profile_says():
    assert {state for state, _, _ in findings(ORIN, "jetson@jp6.2").values()} == {"ok"}
    assert set(findings(ORIN, "jetson@jp6.2")) == {"target", "python", "JetPack", "tensorrt", "CUDA"}


def test_another_jetpack_than_asked_for():
    found = findings(ORIN, "jetson@jp5.1")
    assert found["JetPack"][0] == "note"
    assert "--target jetson-orin-nano@jp6.2" in found["JetPack"][2]
    assert found["tensorrt"][0] == "note", "a newer TensorRT reads what is written for an older one"
    older = findings(
        ORIN.model_copy(update={"l4t": "35.4.1", "versions": {"python": "3.8.10", "tensorrt": "8.5.2.2"}}), "jetson"
    )
    assert older["tensorrt"][0] == "missing", "an older one may not load it"
    assert "--target jetson-orin-nano@jp5.1" in older["tensorrt"][2]


def test_a_tensorrt_that_is_not_jetpack_s():
    state, found, fix = findings(changed(tensorrt="10.7.0"), "jetson")["tensorrt"]
    assert (state, found) == ("note", "10.7.0; jetson-orin-nano@jp6.2 has 10.3.0")
    assert "JetPack brings" in fix
    assert findings(changed(tensorrt=""), "jetson")["tensorrt"][0] == "missing"


def test_one_subject_is_spoken_of_once():
    general = [
        Finding(subject="disk", state="ok", found="9 GB free"),
        Finding(subject="python", state="missing", found="3.10", fix="use Python 3.11"),
        Finding(subject="tensorrt", state="note", found="No module named 'tensorrt'"),
    ]
    found = [(each.subject, each.state) for each in with_stack(general, changed(tensorrt=""), load_target("jetson@jp6.2"))]
    assert found[:2] == [("disk", "ok"), ("python", "missing")], "what a build here lacks stays"
    assert [state for subject, state in found if subject == "tensorrt"] == ["missing"]


def test_an_unknown_jetson_linux():
    state, found, _ = findings(ORIN.model_copy(update={"l4t": "99.1"}), "jetson")["JetPack"]
    assert state == "note"
    assert "no known JetPack" in found


def test_another_machine():
    state, found, fix = findings(ORIN, "jetson-agx-orin")["target"]
    assert (state, found) == ("missing", "NVIDIA Jetson Orin Nano Developer Kit is not jetson-agx-orin")
    assert "jetson-orin-nano" in fix
    pi = MachineFacts(architecture="aarch64", board="Raspberry Pi 5 Model B", cuda=False, versions={"python": "3.11.2"})
    found = findings(pi, "raspberry-pi-5")
    assert found["target"][0] == "ok"
    assert found["onnxruntime"][0] == "missing"
    assert findings(pi, "arm64")["target"][0] == "ok"


def test_a_smaller_module():
    state, found, fix = findings(ORIN.model_copy(update={"memory_bytes": 3_900_000_000}), "jetson")["target"]
    assert state == "missing"
    assert found.endswith("with 3.9 GB of memory (8 GB in a jetson-orin-nano) is not jetson-orin-nano")
    assert "jetson-orin-nano" not in fix
    assert findings(ORIN.model_copy(update={"memory_bytes": 7_990_000_000}), "jetson")["target"][0] == "ok"


@pytest.mark.parametrize(("version", "state"), [("", "missing"), ("3.5.2", "missing"), ("3.6.9", "ok"), ("3.13.0", "ok")])
def test_python(version, state):
    assert findings(changed(python=version), "jetson")["python"][0] == state


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64", "36.4.3"),
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64", "32.7.1"),
        ("something else", None),
        ("", None),
    ],
)
def test_jetson_linux_as_its_file_says(text, release):
    assert l4t_release(text) == release


def test_cuda_as_its_file_says():
    assert cuda_version('{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}') == "12.6.68"
    for damaged in ("{", "[]", '{"cuda": 3}', ""):
        assert cuda_version(damaged) is None


def test_this_machine_is_what_it_is():
    facts = this_machine()
    assert facts.architecture == platform.machine()
    assert findings(facts, "cpu")["target"][0] == "ok"
    if not facts.board:
        assert findings(facts, "jetson")["target"][0] == "missing"
        page = CliRunner().invoke(cli, ["doctor", "--target", "jetson"])
        assert page.exit_code == 3
        assert "is not jetson-orin-nano" in page.stdout
    assert CliRunner().invoke(cli, ["doctor", "--target", "cpu"]).exit_code == 0
