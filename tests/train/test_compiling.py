"""torch.compile in the trainer: the same training where it works, a warning and the plain training where it does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lorita_deploy.errors import TrainingWarning
from lorita_deploy.train.compiling import try_compile
from lorita_deploy.train.composition import factorize


def network() -> nn.Module:
    torch.manual_seed(0)
    return factorize(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), 3)


def test_what_cannot_be_compiled_is_trained_plainly_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module) -> torch.Tensor:
        model(torch.randn(5, 1, 4, 4))  # the statistics move before it breaks
        raise RuntimeError("\nno working compiler\nmore of it")

    module = network()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    monkeypatch.setattr(torch, "compile", lambda each: each)
    with pytest.warns(TrainingWarning, match="not compiled, training goes on without: no working compiler$"):
        assert try_compile(module, broken) is module
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", "no-such-compiler"])
def test_a_training_through_a_real_compiler_and_through_none(tmp_path: Path, compiler: str) -> None:
    if compiler == "g++" and shutil.which("g++") is None:
        pytest.skip("needs g++")
    environment = os.environ | {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["compiled"] is (compiler == "g++")
    assert answer["difference"] < 1e-4
    assert ("not compiled" in done.stderr) is (compiler != "g++")


def main() -> None:
    """Gradients of a compiled network against those of its plain twin."""
    x = torch.randn(5, 1, 4, 4)
    found = []
    for compile in (False, True):
        module = network()
        model = try_compile(module, lambda model: model(x)) if compile else module
        model(x).square().sum().backward()
        found.append([parameter.grad for parameter in module.parameters()])
    difference = max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))
    print(json.dumps({"compiled": model is not module, "difference": difference}))


if __name__ == "__main__":
    main()
