"""TAB offers what there is, quickly."""

import os
import re
import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from lorita_deploy.cli import main
try:
    main()
finally:
    heavy = [name for name in ("torch", "onnx", "scipy") if name in sys.modules]
    assert not heavy, heavy
"""


def offered(*words, shell="bash"):
    """What is offered for the last word."""
    asked = {
        "_LORITA_DEPLOY_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(("lorita-deploy", *words)),
        "COMP_CWORD": str(len(words)),
    }
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **asked})
    assert "Error" not in done.stderr
    return [line.partition(",")[::2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("bui",), ("plain", "build")),
        (("build", "--mod"), ("plain", "--model")),
        (("build", "--model", "vgg1"), ("plain", "vgg16")),
        (("build", "--model", "torchv"), ("plain", "torchvision:")),
        (("plan", "-t", "jetson"), ("plain", "jetson-orin-nano")),
        (("targets", "show", "jet"), ("plain", "jetson")),
        (("models", "show", "res"), ("plain", "resnet20")),
        (("exporters", "show", "on"), ("plain", "onnx")),
        (("build", "--checkpoint", "w"), ("file", "w")),
        (("build", "--calibration", "im"), ("dir", "im")),
        (("inspect", "bu"), ("file", "bu")),
        (("build", "--criterion", "whi"), ("plain", "whitened")),
    ],
    ids=" ".join,
)
def test_what_tab_offers(words, expected):
    found = offered(*words)
    assert expected in found
    assert all(name.startswith(words[-1]) for _, name in found)


@pytest.mark.parametrize(("shell", "begun"), [("zsh", "1"), ("fish", "vgg1")])
def test_other_shells_are_offered_the_same(shell, begun):
    """zsh asks by the number of the word and reads a line for each of kind, value and help; fish asks by what was begun."""
    words = ("lorita-deploy", "models", "show", "vgg1")
    asked = {"_LORITA_DEPLOY_COMPLETE": f"{shell}_complete", "COMP_WORDS": " ".join(words)}
    asked["COMP_CWORD"] = "3" if shell == "zsh" else begun
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env={**os.environ, **asked}
    )
    assert "Error" not in done.stderr
    found = re.findall(r"\bvgg\d+\b", done.stdout)
    assert found == ["vgg11", "vgg13", "vgg16", "vgg19"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_for_the_shell_gives_a_script(shell, tmp_path):
    """What docs/cli.md says to put into the shell's start-up file."""
    done = subprocess.run(
        [sys.executable, "-c", "from lorita_deploy.cli import main; main()"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "_LORITA_DEPLOY_COMPLETE": f"{shell}_source"},
    )
    assert f"_LORITA_DEPLOY_COMPLETE={shell}_complete" in done.stdout
    (tmp_path / "script").write_text(done.stdout)
    if shutil.which(shell):
        read = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True, check=False)
        assert (read.returncode, read.stderr) == (0, "")
