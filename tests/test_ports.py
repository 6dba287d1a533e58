"""How plug-ins are found by name."""

import json

import pytest
from click.testing import CliRunner
from torch import nn

from lorita_deploy.cli import cli
from lorita_deploy.errors import BadNetwork, UnknownName
from lorita_deploy.ports import EXPORTERS, MODELS, ModelSpec, find_exporter, find_model, names, of_a_family


def test_our_own_plug_ins_come_through_the_public_door():
    assert {"fcn", "vgg16", "resnet20", "vit"} <= set(names(MODELS))
    assert names(EXPORTERS) == ["onnx", "tensorrt", "tensorrt-rtx"]
    assert find_model("vgg16").name == "vgg16"
    assert [of_a_family(name) for name in ("vgg16", "torchvision:resnet18", "mynets:tiny")] == [False, True, False]
    assert find_exporter("onnx").source == "network"


def test_near_misses_are_named():
    with pytest.raises(UnknownName, match="did you mean vgg1"):
        find_model("vgg61")
    with pytest.raises(UnknownName, match="known: onnx"):
        find_exporter("zzz")


@pytest.mark.parametrize("place", ["no_such_module:THING", "json:NOTHING"])
def test_a_broken_plug_in_is_named_and_hides_no_other(tmp_path, monkeypatch, place):
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{MODELS}]\nbent = {place}\n[{EXPORTERS}]\nbent = {place}\n")
    monkeypatch.syspath_prepend(tmp_path)
    for find, kind in ((find_model, "models"), (find_exporter, "exporters")):
        with pytest.raises(BadNetwork, match="bent, of the package broken, cannot be imported") as caught:
            find("bent")
        assert "uninstall" in caught.value.fix
        page = CliRunner().invoke(cli, [kind, "list", "--json"])
        assert page.exit_code == 0, page.stderr
        rows = {each["name"]: each["summary"] for each in json.loads(page.stdout)}
        assert "of the package broken" in rows["bent"]
        assert rows["onnx" if kind == "exporters" else "fcn"] == find("onnx" if kind == "exporters" else "fcn").summary


def test_a_function_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "def tiny():\n"
        '    """A tiny net."""\n'
        "    return nn.Linear(2, 2)\n"
        "def sized(classes, input_size):\n"
        "    return nn.Linear(input_size, classes)\n"
        "not_a_net = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = find_model("mynets:tiny")
    assert spec.summary == "A tiny net."
    assert isinstance(spec.build(10, 32), nn.Linear)
    assert find_model("mynets:sized").build(10, 32).out_features == 10
    for name in ("mynets:none", "nowhere.at.all:f", ":f", "mynets:", "./mynets.py:tiny", "../mynets:tiny", ".:tiny"):
        with pytest.raises(BadNetwork, match="cannot be imported"):
            find_model(name)
    with pytest.raises(BadNetwork, match="not a function"):
        find_model("mynets:not_a_net")


def test_what_a_function_of_ones_own_is_called_with(tmp_path, monkeypatch):
    (tmp_path / "callees.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, width=64, depth=3):\n"
        "        super().__init__(width, depth)\n"
        "def named(classes=7, input_size=9, bias=True):\n"
        "    return nn.Linear(input_size, classes, bias)\n"
        "def other_words(k, s, *, bias=True):\n"
        "    return nn.Linear(s, k, bias)\n"
        "def one(width):\n"
        "    return nn.Linear(width, 2)\n"
        "def three(a, b, c):\n"
        "    return nn.Linear(a, b)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    shapes = {name: find_model(f"callees:{name}").build(10, 32).weight.shape for name in ("Net", "named", "other_words")}
    assert shapes == {"Net": (3, 64), "named": (10, 32), "other_words": (10, 32)}
    for name, wanted in (("one", "width"), ("three", "a, b, c")):
        with pytest.raises(BadNetwork, match=f"wants to be given {wanted}"):
            find_model(f"callees:{name}")
    with pytest.raises(BadNetwork, match="what it takes"):
        find_model("builtins:int")


def test_a_spec_knows_its_input_shape():
    spec = find_model("fcn")
    assert isinstance(spec, ModelSpec)
    assert spec.input_shape() == (spec.channels, spec.input_size, spec.input_size)
    assert spec.input_shape(64)[1:] == (64, 64)
