"""Opset and IR version of a build: the target's, or what --opset asks for, as far as the target reads it."""

import pytest

from lorita_deploy.errors import BadTarget
from lorita_deploy.pipeline.context import Build
from lorita_deploy.pipeline.options import make_options
from lorita_deploy.pipeline.preflight import preflight
from lorita_deploy.targets import load_target


def asked(tmp_path, target, opset=None):
    return Build(make_options(model="fcn", target=target, opset=opset, out=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("target", "opset", "versions"),
    [
        ("jetson", None, (17, 8)),
        ("jetson@jp5.1", None, (13, 7)),
        ("jetson", 20, (20, 9)),
        ("jetson", 13, (13, 8)),
        ("jetson-thor@jp7.2", 22, (22, 10)),
        ("cpu", 18, (18, 8)),
    ],
)
def test_opset_and_ir_version_go_together(tmp_path, target, opset, versions):
    build = asked(tmp_path, target, opset)
    preflight(build)
    assert (build.opset, build.ir_version) == versions


@pytest.mark.parametrize(("target", "opset"), [("jetson-nano", 17), ("jetson@jp5.1", 18), ("jetson@jp6.2", 21), ("cpu", 21)])
def test_an_opset_that_the_target_does_not_read_is_refused(tmp_path, target, opset):
    with pytest.raises(BadTarget, match=f"^{load_target(target).spelled} reads opsets up to"):
        preflight(asked(tmp_path, target, opset))


def test_the_build_folder_names_the_profile(tmp_path):
    assert make_options(model="fcn", target="jetson@jp5.1").folder.name == "fcn-jetson@jp5.1"
