"""The target files: every one is read, sourced and recognisable, and bad ones are refused with the line to mend."""

from importlib import resources
from pathlib import Path

import pytest

from lorita_deploy.errors import BadTarget, LoritaDeployError, UnknownName
from lorita_deploy.profiles import all_profiles, dtypes_of, first_with, number, operators_of, profile_of_l4t
from lorita_deploy.targets import all_targets, is_local, load_target, matches, read_target, smaller_by, this_host

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
    # IR versions that ONNX ties to opsets: a loader that knows the opset knows this IR.
    assert limits.ir_version <= {13: 7, 17: 8}[limits.opset]
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


@pytest.mark.parametrize(
    ("target", "printed", "gigabytes", "same"),
    [
        ("jetson-nano", "NVIDIA Jetson Nano Developer Kit", 4.16, True),
        ("jetson-nano", "NVIDIA Jetson Nano 2GB Developer Kit", 2.07, False),
        ("jetson-orin-nano", "NVIDIA Jetson Orin Nano Developer Kit", 7.99, True),
        ("jetson-orin-nano", "NVIDIA Jetson Orin Nano Developer Kit", 3.9, False),
        ("jetson-orin-nx", "NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 8.0, False),
        ("jetson-orin-nx", "NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 0, True),
        ("jetson-agx-orin", "NVIDIA Jetson AGX Orin Developer Kit", 32.0, False),
        ("raspberry-pi-5", "Raspberry Pi 5 Model B Rev 1.0", 2.1, True),
    ],
)
def test_a_smaller_module_is_another_target(target, printed, gigabytes, same):
    """They call themselves the same, on the same carrier board. Where the memory is not known, the name decides."""
    memory = int(gigabytes * 1e9)
    asked = load_target(target)
    assert matches(asked, architecture="aarch64", board=printed, cuda=True, memory_bytes=memory) is same
    assert smaller_by(asked, memory) == (
        "" if same else f", with {memory / 1e9:.1f} GB of memory (" + (f"{asked.limits.memory_bytes / 1e9:g} GB in a {target})")
    )


def test_aliases_and_own_files(tmp_path):
    assert load_target("jetson").name == "jetson-orin-nano"
    assert load_target("nano").name == "jetson-nano"
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
    with pytest.raises(BadTarget, match="there is no such file") as caught:
        read_target(tmp_path / "none.toml")
    assert caught.value.fix == "check the path"
    with pytest.raises(UnknownName, match="did you mean jetson"):
        load_target("jetsn")


# ---------------------------------------------------------------------------------------------- profiles

JETSONS = [target for target in TARGETS if target.runtime == "tensorrt"]
PROFILED = [load_target(f"{target.name}@{profile}") for target in JETSONS for profile in target.profiles]
IR_OF_OPSET = {13: 7, 17: 8, 20: 9, 22: 10, 24: 12}
"""The IR version of the ONNX release that brought an opset."""


def test_every_board_has_profiles_and_a_default_one():
    assert len(JETSONS) == 6
    for target in JETSONS:
        assert target.profile is not None
        assert target.profile.name == target.default_profile
        assert target.spelled == f"{target.name}@{target.default_profile}"
        assert target.limits.compute_capability
    assert {profile for target in JETSONS for profile in target.profiles} == set(all_profiles()), "a stack that runs nowhere"


@pytest.mark.parametrize("target", PROFILED, ids=lambda target: target.spelled)
def test_a_profile_fixes_what_is_written(target):
    profile, limits = target.profile, target.limits
    assert (limits.opset, limits.opset_max) == (profile.opset, profile.opset_max)
    assert limits.ir_version == IR_OF_OPSET[limits.opset]
    assert limits.ir_version_max == IR_OF_OPSET[limits.opset_max]
    assert profile.opset <= profile.opset_max
    assert len(number(profile.tensorrt)) == 3
    assert len(number(profile.python)) == len(number(profile.cuda)) == 2
    assert any(word in profile.source for word in ("vendor", "published", "read off", "assumption", "documentation"))


def test_what_the_stacks_hold():
    """The figures people ask for, as published (sources in targets/profiles/jetpack.toml)."""
    found = {name: (each.tensorrt, each.cuda, each.python, each.opset_max) for name, each in all_profiles().items()}
    assert found["jp4.6"] == ("8.2.1", "10.2", "3.6", 13)
    assert found["jp5.1"] == ("8.5.2", "11.4", "3.8", 17)
    assert found["jp6.2"] == ("10.3.0", "12.6", "3.10", 20)
    assert found["jp7.2"] == ("10.16.2", "13.2", "3.12", 24)
    versions = [number(each.tensorrt) for each in all_profiles().values()]
    assert versions == sorted(versions)


def test_profiles_are_picked_by_name_alias_and_patch_release():
    assert load_target("jetson").spelled == "jetson-orin-nano@jp6.2"
    assert load_target("jetson@jp5.1.3").spelled == "jetson-orin-nano@jp5.1"
    assert load_target("orin-nano@jp5.1").limits.opset_max == 17
    assert load_target("jetson").limits.opset_max == 20


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("jetson@jp6.3", "did you mean jp6"),
        ("jetson@6.2", "did you mean jp6.2"),
        ("jetson-nano@jp6.2", "jetson-nano@jp4.6"),
        ("jetson@", "jetson-orin-nano@jp7.2"),
        ("cpu@jp6.2", "cpu has no profiles"),
        ("jetsn@jp6.2", "did you mean jetson"),
    ],
)
def test_unknown_profiles(name, finding):
    with pytest.raises(LoritaDeployError, match=finding) as caught:
        load_target(name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("release", "profile"),
    [
        ("32.7.4", "jp4.6"),
        ("35.4.1", "jp5.1"),
        ("36.4.0", "jp6.1"),
        ("36.4.3", "jp6.2"),
        ("36.5.0", "jp6.2"),
        ("39.2.1", "jp7.2"),
    ],
)
def test_a_stack_is_recognised_by_jetson_linux(release, profile):
    assert profile_of_l4t(release).name == profile


@pytest.mark.parametrize("release", ["", "36", "36.40.3", "35.61", "99.1", "not a release"])
def test_an_unknown_release_is_no_stack(release):
    assert profile_of_l4t(release) is None


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ('default_profile = "jp6.2"', 'default_profile = "jp4.6"', "not among the profiles"),
        ('default_profile = "jp6.2"\n', "", "not among the profiles"),
        ('"jp6.2", "jp7.2"]', '"jp6.2", "jp9"]', "not known: 'jp9'"),
        ('"jp6.2", "jp7.2"]', '"jp6.2", 7]', "not known: 7"),
        ("[limits]", "[limits]\nopset = 17", "limits.opset: the profile says it"),
        ('default_profile = "jp6.2"', 'default_profile = "jp6.2"\nprofile = "jp6.2"', "not an entry of target files"),
    ],
)
def test_bad_profiles_are_refused(tmp_path, old, new, finding):
    text = (FOLDER / "jetson-orin-nano.toml").read_text()
    assert old in text
    bad = tmp_path / "bad.toml"
    bad.write_text(text.replace(old, new, 1))
    with pytest.raises(BadTarget, match=finding):
        read_target(bad)


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("opset = 17", "opset = 21", "limits.opset"),
        ("ir_version = 8", "ir_version = 10", "above ir_version_max"),
        ('precision = "fp32"', 'precision = "fp16"', "not among the precisions"),
        ("rank_multiple = { fp32 = 8,", "rank_multiple = { fp32 = 0,", "multiple below 1"),
        ('precisions = ["fp32", "int8"]', 'precisions = ["fp32", "fp16"]', "a rate is missing"),
        ("gflops = { fp32 = 12.0,", "gflops = { fp32 = 0,", r"roofline\.gflops\.fp32: .* greater than 0"),
        ("bandwidth_gb_s = 4.0", "bandwidth_gb_s = 0", r"roofline\.bandwidth_gb_s: .* greater than 0"),
        ("launch_us = 10.0", "launch_us = -1.0", r"roofline\.launch_us: .* greater than or equal to 0"),
        ("align = { fp32 = 4,", "align = { fp32 = 0,", r"roofline\.align\.fp32: .* greater than or equal to 1"),
        ("parallel = 1", "parallel = 0", r"roofline\.parallel: .* greater than or equal to 1"),
        ("[identify]", "memory_bytes = -1\n[identify]", r"limits\.memory_bytes: .* greater than or equal to 1"),
        ("[identify]", "dla = -1\n[identify]", r"limits\.dla: .* greater than or equal to 0"),
        ('exporters = ["onnx"]', "exporters = []", "exporters: .* at least 1"),
        ("ir_version = 8", "ir_version = 7", "limits.ir_version: 7 is below 8, which opset 17 needs"),
    ],
)
def test_numbers_that_contradict_one_another_are_refused(tmp_path, old, new, finding):
    text = (FOLDER / "arm64.toml").read_text()
    assert old in text
    bad = tmp_path / "bad.toml"
    bad.write_text(text.replace(old, new, 1))
    with pytest.raises(BadTarget, match=finding) as caught:
        load_target(str(bad))
    assert str(bad) in str(caught.value)


# ---------------------------------------------------------------------------------------------- operators


def test_operators_only_grow_and_are_onnx_operators():
    import onnx

    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    legacy = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}  # of ONNX before its first stable opset
    before: frozenset[str] = frozenset()
    for version in ("8.2.1", "8.4.1", "8.5.2", "8.6.2", "10.3.0", "10.13.3", "10.16.2", "11.4.1"):
        found = operators_of(version)
        assert before <= found <= known | legacy
        assert dtypes_of(version) <= {name.lower() for name in onnx.TensorProto.DataType.keys()}  # noqa: SIM118
        before = found
    assert {"Conv", "Gemm", "MatMul", "Relu", "QuantizeLinear"} <= operators_of("8.2.1")


@pytest.mark.parametrize(
    ("operator", "without", "since"),
    [
        ("LayerNormalization", "8.5.2", "8.6.2"),
        ("Gelu", "10.3.0", "10.16.2"),
        ("Trilu", "8.4.1", "8.5.2"),
        ("STFT", "10.3.0", "10.13.0"),
    ],
)
def test_operators_come_with_their_version(operator, without, since):
    assert operator not in operators_of(without)
    assert operator in operators_of(since)
    assert number(without) < number(first_with(operator)) <= number(since)


def test_no_version_imports_what_is_not_listed():
    assert first_with("ConvInteger") is None
    assert not operators_of("7.1.3")


def test_the_newest_list_is_what_a_real_parser_says():
    """TensorRT for RTX is the one TensorRT with a builder that installs here; its parser is asked operator by operator."""
    import onnx

    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    logger = trt.Logger(trt.Logger.ERROR)
    parser = trt.OnnxParser(trt.Builder(logger).create_network(0), logger)
    newest = max(profile.opset_max for profile in all_profiles().values())
    schemas = [schema for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""]
    known = {schema.name for schema in schemas if schema.since_version <= newest}
    ours = operators_of("11.4.1")
    theirs = {name for name in known | ours if parser.supports_operator(name)}
    assert len(theirs) > 150
    assert theirs <= ours
    assert ours - theirs == {"DeformConv"}
