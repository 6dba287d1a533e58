"""The command line: every command explains itself, every failure has its message and exit code, --json is JSON."""

import ast
import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from safetensors.torch import save_file

from lorita_deploy import errors
from lorita_deploy.cli import cli
from lorita_deploy.cli.options import FAMILY, SECTIONS, chosen
from lorita_deploy.cli.reference import reference
from lorita_deploy.errors import DeviceUnreachable, LoritaDeployError, OutOfResource, UnknownName, VerificationFailed
from lorita_deploy.pipeline.options import BuildOptions

ROOT = Path(__file__).parents[1]


def leaves(command=cli, path=()):
    """(name parts, command) of everything that does something."""
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from leaves(child, (*path, name))
    else:
        yield path, command


LEAVES = dict(leaves())
IDS = [" ".join(path) for path in LEAVES]


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="lorita-deploy")


# ---------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize(("path", "command"), LEAVES.items(), ids=IDS)
def test_every_command_has_help_with_an_example_of_itself(path, command):
    page = invoke(*path, "-h")
    assert page.exit_code == 0
    assert f"lorita-deploy {' '.join(path)}" in page.output.split("Example:")[1]
    names = {name for parameter in command.params for name in parameter.opts}
    assert {"--json", "-q", "-v"} <= names
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.help, f"{parameter.name} is not explained"


def test_every_build_option_is_offered_once():
    named = [name for fields in SECTIONS.values() for name in fields]
    assert sorted(named) == sorted(BuildOptions.model_fields)
    for command in ("build", "train", "plan", "compress", "export"):
        offered = {parameter.name for parameter in LEAVES[(command,)].params}
        assert {*BuildOptions.model_fields, "dry_run", "config"} <= offered


def test_a_help_page_leaves_out_what_only_longer_commands_read():
    pages = {command: invoke(command, "-h").output for command in FAMILY}
    assert "--max-drop" not in pages["train"]
    assert "--max-drop" in pages["plan"]
    assert "--rungs" not in pages["export"]
    assert all(f"--{name.replace('_', '-')}" in pages["build"] for name in BuildOptions.model_fields if name != "checkpoint")
    assert [command for command in FAMILY if "do nothing yet" in pages[command]] == list(FAMILY[:-1])


def test_the_reference_is_that_of_the_help_pages():
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == reference(), "run: python -m lorita_deploy.cli.reference > docs/cli.md"


def test_version(run_cli):
    assert re.fullmatch(r"lorita-deploy \d+\.\d+\.\d+\n", run_cli("--version").stdout)


# ---------------------------------------------------------------------------------------------- options


def test_only_what_was_asked_for_is_set():
    result = chosen(dict.fromkeys(BuildOptions.model_fields) | {"model": "fcn", "train": False}, None)
    assert result == BuildOptions(model="fcn", train=False)


def test_the_command_line_wins_over_the_file(tmp_path):
    config = tmp_path / "build.toml"
    config.write_text('model = "fcn"\nepochs = 3\nmax-drop = 1\ntrain = false\n')
    assert chosen({}, config) == BuildOptions(model="fcn", epochs=3, max_drop=1.0, train=False)
    assert chosen({"epochs": 5, "train": True}, config).epochs == 5
    budgets = chosen({"speedup": 2.0}, config)
    assert (budgets.speedup, budgets.max_drop) == (2.0, None)
    page = invoke("build", "--config", config, "--dry-run", "--out", tmp_path / "out")
    assert page.exit_code == 0, page.output
    assert not (tmp_path / "out").exists(), "a dry run writes nothing"


def test_dry_run_names_every_stage(tmp_path):
    page = invoke("build", "-m", "fcn", "--dry-run", "--json", "-o", tmp_path / "out")
    stages = json.loads(page.stdout)
    assert [stage["stage"] for stage in stages][:3] == ["data", "train", "collapse"]
    assert not any(stage["cached"] for stage in stages)
    assert json.loads(invoke("plan", "-m", "fcn", "--dry-run", "--json").stdout)[-1]["outputs"] == ["plan.json"]


# ---------------------------------------------------------------------------------------------- bad input

BAD = {
    "model": (("build", "--model", "vgg61"), "did you mean vgg"),
    "no model": (("build",), "--model"),
    "target": (("build", "--model", "fcn", "--target", "jetsn"), "did you mean jetson"),
    "target file": (("build", "--model", "fcn", "--target", "none.toml"), "none.toml"),
    "data": (("train", "--model", "fcn", "--data", "cifar11", "--out", "out"), "did you mean cifar10"),
    "two budgets": (("plan", "--model", "fcn", "--speedup", "2", "--max-drop", "1"), "two budgets"),
    "latency": (("plan", "--model", "fcn", "--max-latency", "fast"), "2.5ms"),
    "epochs": (("train", "--model", "fcn", "--epochs", "0"), "--epochs"),
    "number": (("train", "--model", "fcn", "--lr", "high"), "--lr"),
    "config": (("build", "--config", "none.toml"), "none.toml"),
    "option in config": (("build", "--config", "bad.toml"), "did you mean epochs"),
    "record": (("inspect", "broken.json"), "not valid JSON"),
    "newer record": (("inspect", "newer.json"), "newer lorita-deploy"),
    "weights": (("inspect", "broken.safetensors"), "safetensors"),
    "pickle": (("inspect", "code.pt"), "weights_only"),
    "artifact": (("inspect", "broken.onnx"), "not a whole ONNX file"),
    "file": (("inspect", "none.json"), "no such file"),
    "kind of file": (("inspect", "bad.toml"), "cannot tell"),
    "folder": (("inspect", "."), "no records"),
    "no artifacts": (("verify", "."), "no artifacts"),
    "nothing to race": (("bench", "."), "no artifacts"),
    "no receipt": (("compare", ".", "."), "receipt.json"),
    "exporter": (("exporters", "show", "onx"), "did you mean onnx"),
    "engine": (("inspect", "broken.engine"), "not a TensorRT engine"),
    "engine cut short": (("inspect", "cut.engine"), "cut short"),
    "no profile": (("targets", "check", "broken.onnx", "-t", "jetson@jp6.3"), "did you mean jp6"),
    "checked artifact": (("targets", "check", "broken.onnx", "-t", "jetson"), "not a whole ONNX file"),
    "a name that is too long": (("inspect", "n" * 300), "no such file"),
    "no command": (("bild",), "no such command 'bild'"),
    "no such option of all": (("--fast",), "no such option"),
    "no such option": (("build", "-m", "fcn", "--max-dorp", "1"), "--max-drop"),
    "no choice": (("build", "-m", "fcn", "--precision", "fp8"), "'fp16'"),
    "no file": (("inspect",), "missing argument 'FILE'"),
    "no name": (("models", "show"), "missing argument 'NAME'"),
    "no name among models": (("models", "shwo"), "lorita-deploy models -h"),
    "nothing to time": (("bench",), "a build folder or a bundle"),
    "deadline": (("bench", ".", "--deadline", "-1"), "--deadline"),
    "module": (("plan", "-m", "no_such.module:net"), "No module named 'no_such'"),
    "function": (("plan", "-m", "os:no_such"), "no attribute"),
    "prices as a plan": (("build", "-m", "fcn", "--plan", "newer.json", "-o", "out"), "newer lorita-deploy"),
    "broken prices": (("plan", "-m", "fcn", "--layer-times", "broken.json", "-o", "out"), "not valid JSON"),
    "broken receipt": (("build", "-m", "fcn", "--receipt", "broken.json", "-o", "out"), "not valid JSON"),
    "verified nothing": (("verify", "none"), "no such file or folder"),
    "verified a file": (("verify", "broken.onnx"), "this is a file"),
    "compared with nothing": (("compare", "none", "none"), "no such file or folder"),
    "compared too long a name": (("compare", "n" * 300, "none"), "no such file or folder"),
    "verified too long a name": (("verify", "n" * 300), "no such file or folder"),
    "target of an inspected file": (("inspect", "whole.safetensors", "-t", "jetsn"), "did you mean jetson"),
    "not for a target": (("inspect", "whole.safetensors", "-t", "cpu"), "ONNX"),
    "weights of too long a name": (("train", "-m", "fcn", "--init-from", "n" * 300, "-o", "out"), "--init-from"),
    "data of too long a name": (("train", "-m", "fcn", "--data", "folder:" + "n" * 300, "-o", "out"), "name too long"),
    "a device that torch has not": (("train", "-m", "fcn", "--torch-device", "tpu", "-o", "out"), "no device called 'tpu'"),
    "a file as a model": (("plan", "-m", "./nets.py:net"), "not a path"),
    "a sample is trained": (("train", "-m", "fcn", "--sample", "--dry-run", "-o", "out"), "--sample"),
    "checked nothing": (("targets", "check", "none.onnx", "-t", "jetson"), "cannot read"),
}


@pytest.fixture
def bad_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text('model = "fcn"\nepoch = 3\n')
    Path("broken.json").write_text('{"schema": "lorita-deploy/plan/1", "model"')
    Path("newer.json").write_text('{"schema": "lorita-deploy/plan/99"}')
    Path("broken.onnx").write_bytes(b"\x08\x08 half a file")
    Path("broken.engine").write_bytes(b"\x08\x08 half a file")
    Path("cut.engine").write_bytes(b"ftrt\0\0\0\0")
    save_file({"w": torch.ones(64)}, "whole.safetensors")
    Path("broken.safetensors").write_bytes(Path("whole.safetensors").read_bytes()[:-9])
    Path("code.pt").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")  # a pickle that runs a command when it is loaded
    return tmp_path


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_message_and_code_2(case, bad_files):
    arguments, expected = BAD[case]
    before = sorted(bad_files.iterdir())
    page = invoke(*arguments)
    assert page.exit_code == 2, page.output
    assert page.stdout == ""
    assert expected in page.stderr
    assert "Traceback" not in page.stderr
    what, where, fix = page.stderr.splitlines()
    assert (what[:7], where[:9], fix[:9]) == ("error: ", "  where: ", "  do:    ")
    assert not Path("owned").exists()
    assert [path for path in sorted(bad_files.iterdir()) if path.name != "out"] == before


def test_an_error_names_the_whole_command():
    for words in (("models", "show", "x"), ("targets", "show", "x"), ("exporters", "show", "x"), ("plan", "-m", "x")):
        command = " ".join(word for word in words[:2] if not word.startswith("-"))
        assert f"  where: lorita-deploy {command}\n" in invoke(*words).stderr
    for words in (("models", "show"), ("build",), ("bench",), ("build", "--fast"), ("inspect",)):
        command = " ".join(word for word in words if not word.startswith("-"))
        assert f"  where: lorita-deploy {command}\n" in invoke(*words).stderr


def test_a_wrong_plan_is_told_before_anything_is_computed(bad_files):
    invoke("plan", "-m", "fcn", "--plan", "newer.json", "-o", "out")
    assert not list(Path("out").rglob("*.safetensors"))
    assert not Path("out/data.json").exists()


def test_a_receipt_of_no_build_is_told_before_anything_is_computed(make_receipt, tmp_path):
    page = invoke("build", "-m", "fcn", "--receipt", make_receipt().save(tmp_path / "r.json"), "-o", tmp_path / "out")
    assert page.exit_code == 2
    assert "there is no build here that a receipt could be of" in page.stderr
    assert not (tmp_path / "out" / "data.json").exists()


# ---------------------------------------------------------------------------------------------- the edge


@pytest.fixture
def failing(monkeypatch):
    """``failing(error)``: run a command that raises it."""

    def run(error):
        @click.command("fail")
        def fail():
            raise error

        monkeypatch.setitem(cli.commands, "fail", fail)
        return invoke("fail")

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (VerificationFailed("differs", where="model.onnx", fix="export again"), 4),
        (DeviceUnreachable("does not answer"), 5),
        (OutOfResource("full"), 6),
        (MemoryError("Unable to allocate 9 TiB"), 6),
        (OSError(errno.ENOSPC, "No space left on device", "weights"), 6),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 6),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_errors_become_messages_and_codes(failing, error, code):
    page = failing(error)
    assert page.exit_code == code
    assert page.stderr.strip()
    assert "Traceback" not in page.stderr


def test_the_three_parts_are_shown(failing):
    page = failing(VerificationFailed("differs", where="model.onnx", fix="export again"))
    assert page.stderr == "error: differs\n  where: model.onnx\n  do:    export again\n"


def kinds(root=LoritaDeployError):
    """Every class of the tree."""
    return [root, *(kind for child in root.__subclasses__() for kind in kinds(child))]


def bare(kind):
    """An error that knows nothing but what happened."""
    return UnknownName("model", "vgg61", ["vgg16"]) if kind is UnknownName else kind("something happened")


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_kind_of_error_says_what_where_and_what_to_do(failing, kind):
    page = failing(bare(kind))
    assert page.exit_code == kind.exit_code
    what, where, fix = page.stderr.splitlines()
    assert what.startswith("error: ")
    assert where == "  where: lorita-deploy fail"
    assert fix.startswith("  do:    ")
    assert kind is LoritaDeployError or kind.otherwise != LoritaDeployError.otherwise, "a remedy of its own"
    if kind is not UnknownName:
        assert failing(kind("x", where="y", fix="z")).stderr == "error: x\n  where: y\n  do:    z\n"


def test_the_tree_in_the_docstring_is_the_tree():
    shown = re.findall(r"(\w+) +(\d)(?: |$)", re.sub(r"[│├└─]|exit", " ", errors.__doc__.split("Each error")[0]), re.MULTILINE)
    assert {name: int(code) for name, code in shown} == {
        kind.__name__: kind.exit_code for kind in kinds() if kind.__module__ == errors.__name__
    }


def raised():
    """(module, line, name, keywords) of every place in the library and its plug-ins that makes an error of ours."""
    names = {kind.__name__ for kind in kinds()}
    for path in sorted(
        path for folder in ("lorita_deploy", "exporters", "sample_models") for path in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.func.id, {keyword.arg for keyword in node.keywords}


def test_the_root_is_never_raised_without_a_remedy():
    """The root's own advice is too general to help anybody: who raises it has to say what to do."""
    found = list(raised())
    assert len(found) > 150
    assert [place for place, name, given in found if name == "LoritaDeployError" and "fix" not in given] == []


@pytest.mark.parametrize("error", [ValueError("a mistake of ours"), OSError(errno.EACCES, "denied"), RuntimeError("odd")])
def test_a_programming_error_keeps_its_traceback(failing, error):
    assert failing(error).exception is error


SLEEPER = """
import signal, sys, time
import click
from lorita_deploy.cli import cli, main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored

@cli.command("sleep")
def sleep():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("tidied", flush=True)

sys.argv = ["lorita-deploy", "sleep"]
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_command_tidily(number, code):
    process = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 20
    assert process.returncode == code
    assert out == "tidied\n"
    assert err.count("\n") == 1
    assert "run the same command again" in err


def test_a_reader_that_leaves_early_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "lorita_deploy", "targets", "show", "jetson"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_code_6():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "lorita_deploy", "targets", "list"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 6
    assert done.stderr.startswith(b"error: the disk is full")


def on_a_terminal(*arguments, **environment):
    """What a command prints on a terminal."""
    ours, theirs = pty.openpty()
    names = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "lorita_deploy", *arguments],
        stdout=theirs,
        stderr=theirs,
        env=names | {"TERM": "xterm-256color", "COLUMNS": "100"} | environment,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    process.wait(30)
    os.close(ours)
    return shown


def test_colours_only_on_a_terminal_that_wants_them(run_cli):
    colour = re.compile(rb"\x1b\[[0-9;]*3[0-9]m")
    assert colour.search(on_a_terminal("doctor"))
    assert not colour.search(on_a_terminal("doctor", NO_COLOR="1"))
    assert "\x1b" not in run_cli("doctor").stdout


def test_a_path_that_looks_like_an_emoji_is_shown_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke("build", "-m", "fcn", "--dry-run", "-o", ":dog:").stdout.splitlines()[-1] == ":dog:"


def test_a_network_in_the_current_folder_is_found(tmp_path):
    (tmp_path / "nets_of_mine.py").write_text("from torch import nn\n\n\ndef net():\n    return nn.Linear(2, 2)\n")
    script = Path(sys.executable).with_name("lorita-deploy")
    shown = subprocess.run([script, "models", "show", "nets_of_mine:net"], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr


# ---------------------------------------------------------------------------------------------- answers


@pytest.fixture
def files(tmp_path):
    """One real file of each kind."""
    save_file({"layer.weight": torch.ones(4, 3)}, tmp_path / "plain.safetensors", metadata={"model": "tiny"})
    factors = {f"layer.parametrizations.weight.original{place}": torch.ones(2, 2) for place in range(3)}
    save_file(factors, tmp_path / "factors.safetensors")
    torch.save({"layer.weight": torch.ones(4, 3)}, tmp_path / "plain.pt")
    weight = helper.make_tensor("w", TensorProto.FLOAT, (3, 4), np.ones(12, dtype=np.float32))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 4))],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="test")
    onnx.save(model, tmp_path / "tiny.onnx")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("plain.safetensors", {"params": 12, "depth": None, "metadata": {"model": "tiny"}}),
        ("factors.safetensors", {"params": 12, "depth": 3}),
        ("plain.pt", {"params": 12, "depth": None}),
        ("tiny.onnx", {"opset": 17, "ir_version": 8, "params": 12, "operators": {"MatMul": 1}, "producer": "test"}),
    ],
)
def test_inspect_says_what_a_file_is(files, name, facts):
    found = json.loads(invoke("inspect", files / name, "--json").stdout)
    assert facts.items() <= found.items()
    shown = invoke("inspect", files / name)
    assert shown.exit_code == 0
    assert found["sha256"][:16] in shown.stdout


@pytest.mark.parametrize("path", [path for path in LEAVES if len(path) == 2 or path == ("doctor",)], ids=" ".join)
def test_json_is_nothing_but_json(path):
    name = {"models": "fcn", "targets": "cpu", "exporters": "onnx"}.get(path[0])
    if path[-1] == "check":
        return  # needs a file: tests/inspection/test_loading.py
    page = invoke(*path, *([name] if path[-1] == "show" else []), "--json")
    assert page.exit_code == 0
    assert json.loads(page.stdout)


def test_doctor_offers_a_remedy_for_what_is_missing(monkeypatch):
    monkeypatch.setattr("lorita_deploy.doctor.machine.requires", lambda name: ["torch>=2", "no-such-package-here>=3"])
    page = invoke("doctor", "--json")
    assert page.exit_code == 3
    missing = [finding for finding in json.loads(page.stdout)["findings"] if finding["state"] == "missing"]
    assert [finding["fix"] for finding in missing] == ["pip install 'no-such-package-here>=3'"]


def test_doctor_reads_requirements_as_pip_does(monkeypatch):
    asked = ["numpy>=99", "click>=8,<9", "rich", "no-such-package[extra]>=3; python_version >= '3.9'"]
    asked += ["not-here>=1; sys_platform == 'nowhere'", "not-asked>=1; extra == 'test'"]
    monkeypatch.setattr("lorita_deploy.doctor.machine.requires", lambda name: asked)
    found = {each["subject"]: each for each in json.loads(invoke("doctor", "--json").stdout)["findings"]}
    assert found["click"]["state"] == found["rich"]["state"] == "ok"
    assert found["numpy"]["state"] == "missing"
    assert found["numpy"]["found"] == f"{version('numpy')}, and >=99 is needed"
    assert found["numpy"]["fix"] == "pip install 'numpy>=99'"
    assert found["no-such-package"]["fix"] == "pip install 'no-such-package[extra]>=3'"
    assert not {"not-here", "not-asked"} & found.keys()


def test_doctor_survives_a_torch_that_says_nothing(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError\n")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from lorita_deploy.doctor.machine import _cuda; print(*_cuda())"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "found='ImportError'" in done.stdout


def test_compare(make_receipt, tmp_path):
    def save(name, **given):
        return make_receipt(**given).save(tmp_path / f"{name}.json")

    before = save("before", dense=2.0, compressed=1.0)
    assert invoke("compare", before, save("same", dense=2.005, compressed=1.004)).exit_code == 0
    slower = save("slower", dense=2.0, compressed=1.2)
    page = invoke("compare", before, slower, "--json")
    assert page.exit_code == 1
    verdicts = {change["name"]: change["verdict"] for change in json.loads(page.stdout)["changes"]}
    assert verdicts == {"dense": "same", "compressed": "regression"}
    assert invoke("compare", before, slower, "--tolerance", "30").exit_code == 0
    other = save("other", dense=2.0, compressed=1.0, threads=2)
    refused = invoke("compare", before, other)
    assert refused.exit_code == 3
    assert "threads: 1 -> 2" in refused.stderr
    assert "--force" in refused.stderr
    forced = invoke("compare", before, other, "--force")
    assert forced.exit_code == 0
    assert "threads: 1 -> 2" in forced.stdout


def test_doctor_says_where_a_build_could_not_write(tmp_path):
    assert "folder" in invoke("doctor", "--out", tmp_path / "new" / "build").stdout
    (tmp_path / "file").write_text("in the way")
    page = invoke("doctor", "--json", "--out", tmp_path / "file" / "build")
    assert page.exit_code == 3
    found = {each["subject"]: each for each in json.loads(page.stdout)["findings"]}["folder"]
    assert found["state"] == "missing"
    assert "--out" in found["fix"]
    for folder in (tmp_path / ("x" * 300), tmp_path / "new" / ("x" * 300) / "build"):
        page = invoke("doctor", "--json", "--out", folder)
        assert page.exit_code == 3
        found = {each["subject"]: each for each in json.loads(page.stdout)["findings"]}["folder"]
        assert "longer than the 255 bytes of a name" in found["found"]
