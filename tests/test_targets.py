"""The target files: every one is read, sourced and recognisable, and bad ones are refused with the line to mend."""

from importlib import resources
from pathlib import Path

import pytest

from lorita_deploy.errors import BadTarget, UnknownName
from lorita_deploy.targets import all_targets, is_local, load_target, read_target, this_host

FOLDER = Path(str(resources.files("lorita_deploy") / "targets"))
TARGETS = all_targets()


def test_every_file_is_read_and_named_as_its_target():
    assert {target.name for target in TARGETS} == {path.stem for path in FOLDER.glob("*.toml")}
    assert {"cpu", "cuda", "jetson-orin-nano", "jetson-nano", "jetson-xavier-nx", "jetson-orin-nx"} <= {t.name for t in TARGETS}


def test_names_and_aliases_are_unique():
    spellings = [spelling for target in TARGETS for spelling in (target.name, *target.aliases)]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_numbers_fit_together(target):
    limits, roofline = target.limits, target.roofline
    assert 7 <= limits.opset <= limits.opset_max
    # IR versions that ONNX ties to opsets: a loader that knows the opset knows this IR.
    assert limits.ir_version <= {13: 7, 17: 8}[limits.opset]
    assert limits.precision in limits.precisions
    for precision in limits.precisions:
        assert limits.rank_multiple[precision] > 0
        if target.name != "cpu":
            assert limits.rank_multiple[precision] % roofline.align[precision] == 0, "a rank offered must not waste lanes"
            assert roofline.gflops[precision] > 0
    rates = [roofline.gflops[precision] for precision in ("fp32", "fp16", "int8") if precision in roofline.gflops]
    assert rates == sorted(rates)
    assert roofline.bandwidth_gb_s > 0
    assert roofline.launch_us > 0
    assert roofline.parallel >= 1


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_sources_say_what_is_known_and_what_is_assumed(target):
    for table in ("limits", "roofline"):
        assert any(word in target.source[table] for word in ("vendor", "assumption", "benchmarks/", "table", "parser"))


def test_a_machine_is_at_most_one_board():
    boards = [target for target in TARGETS if target.identify.device_tree_model]
    names = {  # as the boards print them in /proc/device-tree/model
        "NVIDIA Jetson Orin Nano Developer Kit": "jetson-orin-nano",
        "NVIDIA Orin Nano Developer Kit": "jetson-orin-nano",
        "NVIDIA Jetson Nano Developer Kit": "jetson-nano",
        "NVIDIA Jetson Xavier NX Developer Kit": "jetson-xavier-nx",
        "NVIDIA Jetson AGX Orin Developer Kit": "jetson-agx-orin",
        "NVIDIA Jetson AGX Thor Developer Kit": "jetson-thor",
        "Raspberry Pi 5 Model B Rev 1.0": "raspberry-pi-5",
    }
    for printed, expected in names.items():
        assert [board.name for board in boards if (board.identify.device_tree_model or "?") in printed] == [expected]


def test_aliases_and_own_files(tmp_path):
    assert load_target("jetson").name == "jetson-orin-nano"
    own = tmp_path / "mine.toml"
    own.write_text((FOLDER / "cpu.toml").read_text().replace('name = "cpu"', 'name = "mine"'))
    assert load_target(str(own)).name == "mine"
    assert is_local(load_target("cpu"))
    assert this_host().cores >= 1


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("opset = 17", "opset = 17\nopsett = 17", "limits.opsett"),
        ("opset = 17", 'opset = "17"', "limits.opset"),
        ("opset = 17\n", "", "limits.opset"),
        ("[limits]", "[limits", "TOML"),
        ("roofline = ", "rooflin = ", "no source is given for: roofline"),
    ],
)
def test_bad_files_are_refused(tmp_path, old, new, finding):
    text = (FOLDER / "cpu.toml").read_text()
    bad = tmp_path / "bad.toml"
    bad.write_text(text.replace(old, new))
    assert bad.read_text() != text
    with pytest.raises(BadTarget, match=finding.replace(".", r"\.")) as caught:
        read_target(bad)
    assert str(bad) in str(caught.value)


def test_missing_file_and_near_misses(tmp_path):
    with pytest.raises(BadTarget):
        read_target(tmp_path / "none.toml")
    with pytest.raises(UnknownName, match="did you mean jetson"):
        load_target("jetsn")
