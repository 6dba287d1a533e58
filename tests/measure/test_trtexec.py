"""run.sh on a board without Python, and what is made of its times elsewhere.

No trtexec runs here. In its place stands a shell script that prints, in trtexec's own formats of 8.2, 10.3 and 11.3, times that
are known; the runner (sh), the packing (tar), the reader and the command line are the real ones.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from small_onnx import write_small_onnx

from lorita_deploy.bundle.manifest import check_bundle, write_bundle
from lorita_deploy.cli import cli
from lorita_deploy.errors import BadArtifact, BadRecord, EnvironmentDiffers, LoritaDeployError, PlanMismatch
from lorita_deploy.measure.trtexec import read_trtexec
from lorita_deploy.measure.trtexec_log import ASKED, Log, version_of
from lorita_deploy.pipeline import build, make_options
from lorita_deploy.pipeline.again import keep_receipt, read_receipt
from lorita_deploy.pipeline.options import BuildOptions
from lorita_deploy.records import Artifact, Plan, PriceTable, Receipt, Role

TRTEXEC = r"""#!/bin/sh
# What trtexec prints and writes, of the version in $V; dense takes 2 ms, the others 1 ms, every 16th inference a little more.
graph=Disabled spin=Disabled transfers=Enabled
[ "$V" -ge 110000 ] && graph=Enabled spin=Enabled transfers=Disabled
times='' save='' load='' warm=200
for word in "$@"; do
    case $V-$word in
        *---help) echo "&&&& RUNNING TensorRT.trtexec [TensorRT v$V] # trtexec --help"; echo "=== Model Options ==="
            if [ "$V" -lt 8400 ]; then echo "  --workspace=N  Set workspace size in MiB."
            else echo "  --memPoolSize=poolspec  Specify the size constraints of the designated memory pool(s)"; fi; exit 0 ;;
        8201---memPoolSize* | 8201---stronglyTyped | 110300---fp16 | 110300---workspace*)
            echo "[E] Unknown option: $word"; echo "&&&& FAILED TensorRT.trtexec [TensorRT v$V]"; exit 1 ;;
        *-*workspace:[0-9]* | *-*workspace=[0-9]*)
            [ "$(echo "$word" | sed 's/.*[:=]//')" -le "${MEMORY:-4096}" ] ||
                { echo "[E] Error Code 2: OutOfMemory"; exit 1; } ;;
        *--onnx=*"${REFUSED:-none}"*) echo "[E] [TRT] ModelImporter.cpp: No importer registered for op: Rope"; exit 1 ;;
        *-*=*) ;;
        *--useCudaGraph) graph=Enabled ;;
        *--useSpinWait) spin=Enabled ;;
        *--noDataTransfers) transfers=Disabled ;;
        *--includeDataTransfers) transfers=Enabled ;;
    esac
    case $word in
        --exportTimes=*) times=${word#*=} ;;
        --saveEngine=*) save=${word#*=} ;;
        --loadEngine=*) load=${word#*=} ;;
        --warmUp=*) warm=${word#*=} ;;
    esac
done
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v$V] # trtexec $*"
echo "[11/23/2026-21:00:00] [I] === Inference Options ==="
echo "[11/23/2026-21:00:00] [I] Duration: 1s (+ ${warm}ms warm up)"
echo "[11/23/2026-21:00:00] [I] Data transfers: $transfers"
echo "[11/23/2026-21:00:00] [I] Spin-wait: $spin"
echo "[11/23/2026-21:00:00] [I] CUDA Graph: $graph"
echo "[11/23/2026-21:00:00] [I] === Device Information ==="
echo "[11/23/2026-21:00:00] [I] Selected Device: Orin"
echo "[11/23/2026-21:00:00] [I] Compute Capability: 8.7"
if [ -n "$save" ]; then echo "an engine of $save by $V" >"$save"; echo "&&&& PASSED TensorRT.trtexec [TensorRT v$V]"; exit 0; fi
echo "[11/23/2026-21:00:01] [I] Engine loaded in 0.0125 sec."
case $load in *dense*) ms=2 ;; *) ms=1 ;; esac
moved=0
[ $transfers = Enabled ] && moved=0.25
awk -v ms=$ms -v moved=$moved -v file="$times" -v old="$((V < 8500))" 'BEGIN {
    print "[" > file; mark = "  "; n = 120; warmups = 20
    for (i = old ? -warmups : 0; i < n; i++) {
        compute = ms * (i < 0 ? 3 : i % 16 == 15 ? 1.02 : 1); at = 500 + i * ms
        printf "%s{ \"startEnqMs\" : %g, \"endEnqMs\" : %g, \"startH2dMs\" : %g, \"endH2dMs\" : %g", mark, at, at, at, at > file
        printf ", \"startComputeMs\" : %g, \"endComputeMs\" : %g", at, at + compute > file
        printf ", \"startD2hMs\" : %g, \"endD2hMs\" : %g, \"h2dMs\" : %g", at, at, moved / 2 > file
        printf ", \"computeMs\" : %g, \"d2hMs\" : %g, \"latencyMs\" : %g }\n", compute, moved / 2, compute + moved > file
        mark = ", "
    }
    print "]" > file
    say = "[11/23/2026-21:00:03] [I] "
    print say "Warmup completed " warmups " queries over 500 ms"
    print say "Timing trace has " n " queries over 1.0021 s"
    print say "=== Performance summary ==="
    print say "Throughput: " 1000 / ms " qps"
    rest = " ms, percentile(90%) = 1 ms, percentile(95%) = 1 ms, percentile(99%) = 1 ms"
    print say "Latency: min = 1 ms, max = 2 ms, mean = 1 ms, median = " ms + moved rest
    print say "GPU Compute Time: min = 1 ms, max = 2 ms, mean = 1 ms, median = " ms rest
}'
[ -z "${CUT:-}" ] || { head -c 3000 "$times" >"$times.cut"; mv "$times.cut" "$times"; }
echo "&&&& PASSED TensorRT.trtexec [TensorRT v$V] # trtexec $*"
"""
WIDTHS: dict[Role, int] = {"compressed": 8, "dense": 32}


def make_bundle(folder: Path, seed: int = 0, **changes: object) -> Path:
    root, artifacts = folder.with_name(f"{folder.name}-source"), []
    root.mkdir()
    for role, width in WIDTHS.items():
        content = write_small_onnx(root / f"{role}.onnx", width, seed).read_bytes()
        facts = {"exporter": "onnx", "opset": 17, "ir_version": 8, "precision": "fp32", "batch": 1, "dynamic_batch": False}
        facts |= {"rung": 0, "simplified": False, "inputs": (), "outputs": (), "size_bytes": len(content), **changes}
        artifacts.append(Artifact(role=role, path=f"{role}.onnx", sha256=hashlib.sha256(content).hexdigest(), **facts))
    golden = {"input": np.zeros((1, 3, 16, 16), np.float32)}
    facts = {"producer": "lorita-deploy 0", "sources": {}, "preprocessing": {}, "classes": (), "tolerance": 1e-3}
    write_bundle(
        folder, artifacts=artifacts, artifact_root=root, golden_inputs=golden, golden_outputs={}, model="small",
        target="jetson-orin-nano", runtime="tensorrt", **facts,
    )  # fmt: skip
    return folder


def run_sh(folder: Path, version: int = 100300, rounds: int = 1, **more: str) -> subprocess.CompletedProcess[str]:
    program = folder.with_name("trtexec-stand-in")
    program.write_text(TRTEXEC)
    program.chmod(0o755)
    told = {**os.environ, "TRTEXEC": str(program), "V": str(version), "ROUNDS": str(rounds), **more}
    return subprocess.run(["sh", "run.sh"], cwd=folder, env=told, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle in which run.sh ran as it does by default, and what it printed."""
    folder = make_bundle(tmp_path_factory.mktemp("board") / "bundle")
    done = run_sh(folder, rounds=6)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.parametrize(("open_batch", "batch"), [(True, 1), (False, 8)])
def test_an_open_batch_was_timed_as_one(tmp_path: Path, open_batch: bool, batch: int) -> None:
    """Trtexec takes 1 for an open dimension where no shapes are given."""
    folder = make_bundle(tmp_path / "bundle", batch=8, dynamic_batch=open_batch)
    assert run_sh(folder, rounds=6).returncode == 0
    receipt = read_trtexec(folder / "trtexec")
    assert receipt.settings.batch == batch
    for each in receipt.series:
        assert each.throughput_per_s == pytest.approx(batch * 1e3 / each.median_ms, rel=0.5)


@pytest.fixture
def home(raced: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of what run.sh wrote, to be damaged."""
    return Path(shutil.copytree(raced[0] / "trtexec", tmp_path / "carried"))


def test_a_receipt_is_made_of_what_trtexec_timed(raced: tuple[Path, str], tmp_path: Path) -> None:
    folder, printed = raced
    check_bundle(folder)  # what was made there does not spoil it
    (packed,) = folder.glob("trtexec-*.tar.gz")
    assert packed.name in printed
    receipt, where = keep_receipt(packed, folder)
    assert Receipt.load(where) == receipt
    assert read_receipt(folder / "trtexec") == receipt, "packed or not"
    where.unlink()
    compressed, dense = receipt.series
    assert (compressed.name, dense.name, compressed.reloads, compressed.n) == ("compressed", "dense", 12, 12 * 120)
    assert (compressed.median_ms, dense.median_ms) == (1.25, 2.25), "with transfers"
    assert compressed.gpu
    assert dense.gpu
    assert (compressed.gpu.median_ms, dense.gpu.median_ms, compressed.gpu.n) == (1.0, 2.0, 12 * 120)
    assert compressed.gpu.p99_ms == 1.02, "by the samples, whatever trtexec says of its percentiles"
    assert (compressed.load_ms, compressed.first_ms, compressed.verified) == (12.5, None, None)
    assert compressed.warmup_runs == 12 * 20
    assert compressed.throughput_per_s == 1000
    assert compressed.engine
    assert compressed.engine.workspace_bytes == 2048 << 20
    assert compressed.engine.about == {"tensorrt": "10.3.0", "gpu": "Orin", "compute_capability": "8.7"}
    (ratio,) = receipt.ratios
    assert (ratio.candidate, ratio.ratio, ratio.reloads) == ("compressed", 1.25 / 2.25, 12)
    assert receipt.faster == "compressed"
    assert (receipt.settings.runtime, receipt.model, receipt.host.versions["tensorrt"]) == ("trtexec", "small", "10.3.0")
    assert [each.at for each in receipt.conditions] == ["start", *(f"round {number}" for number in range(1, 7))]
    assert any("not interleaved call by call" in each for each in receipt.warnings)
    assert any("verifies no outputs" in each for each in receipt.warnings)
    if "Orin" not in receipt.host.machine or receipt.host.kind != "jetson-orin-nano":
        assert any("is not a jetson-orin-nano" in each for each in receipt.warnings), "no other machine's times pass for it"


def test_turns_go_there_and_back(raced: tuple[Path, str]) -> None:
    race = (raced[0] / "trtexec" / "race.txt").read_text()
    taken = re.findall(r"^turn (\d+) (\w+) gpu$", race, flags=re.MULTILINE)
    assert taken[:4] == [("1", "compressed"), ("1", "dense"), ("2", "dense"), ("2", "compressed")]
    assert len(taken) == 24


@pytest.mark.parametrize(("version", "spelled"), [(8201, "8.2.1"), (110300, "11.3.0")])
def test_every_version_is_asked_for_the_same(tmp_path: Path, version: int, spelled: str) -> None:
    """8.2 writes the warm-up into its times, and knows another flag for workspace; 11 has the opposite defaults."""
    folder = make_bundle(tmp_path / "bundle")
    done = run_sh(folder, version)
    assert done.returncode == 0, done.stderr
    for kind, wanted in ASKED.items():
        said = Log.read(folder / "trtexec" / f"time-dense-{kind}-1.log").said
        assert said == wanted
    receipt = read_receipt(folder / "trtexec")
    assert receipt.host.versions["tensorrt"] == spelled
    compressed, dense = receipt.series
    assert compressed.gpu
    assert (compressed.median_ms, dense.median_ms, compressed.gpu.median_ms, compressed.n) == (1.25, 2.25, 1.0, 240)
    assert max(compressed.samples_ms) < 2, "no warm-up among them"
    assert any("only 2 reloads" in each for each in receipt.warnings)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.sha256", "dense.onnx"])
def test_a_changed_bundle_is_not_run(tmp_path: Path, name: str) -> None:
    folder = make_bundle(tmp_path / "bundle")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    done = run_sh(folder)
    assert done.returncode == 2
    assert f"where: {name.removesuffix('.sha256')}" in done.stderr
    assert not (folder / "trtexec").exists()


def test_workspace_is_halved_until_memory_suffices(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    assert run_sh(folder, MEMORY="256").returncode == 0
    first = read_receipt(folder / "trtexec").series[0].engine
    assert first
    assert first.workspace_bytes == 256 << 20
    engines = {path: path.stat().st_mtime_ns for path in (folder / "trtexec").glob("*.engine")}
    assert run_sh(folder).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "trtexec").glob("*.engine")} == engines, "built once"
    assert run_sh(folder, version=101602).returncode == 0
    assert len(list((folder / "trtexec").glob("*.engine"))) == 4, "another TensorRT has engines of its own"
    done = run_sh(make_bundle(tmp_path / "small"), MEMORY="8")
    assert (done.returncode, done.stderr.splitlines()[0]) == (6, "no engine could be built")


def test_what_trtexec_refuses_is_not_tried_again_with_less_memory(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    done = run_sh(folder, REFUSED="dense")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "trtexec cannot build an engine of it")
    assert "where: dense.onnx" in done.stderr
    assert "No importer registered" in (folder / "trtexec/build-dense.log").read_text()
    assert [path.name.split("-v")[0] for path in folder.glob("trtexec/*.engine")] == ["compressed"], "what is finished stays"


def test_two_runs_do_not_disturb_one_another(tmp_path: Path) -> None:
    if not shutil.which("flock"):
        pytest.skip("flock is not installed")
    folder = make_bundle(tmp_path / "bundle")
    holder = subprocess.Popen(["flock", ".", "sh", "-c", "echo held; cat"], cwd=folder, stdin=-1, stdout=-1, text=True)
    assert holder.stdout
    assert holder.stdin
    assert holder.stdout.readline() == "held\n"
    done = run_sh(folder)
    holder.stdin.close()
    holder.wait()
    assert (done.returncode, done.stderr.splitlines()[0]) == (6, "another run is at work in this folder")


def test_what_the_board_was_like_is_read_as_its_own_runner_reads_it(home: Path) -> None:
    start = "power_mode MAXN\nclock 17000000.gpu 918000000 918000000 918000000\nclock policy0 1510400 115200 1510400\n"
    later = "power_mode 15W\nclock 17000000.gpu 306000000 918000000 918000000\ntemperature 45500 gpu-thermal\n"
    text = re.sub(r"(power_mode|clock|temperature|throttle) .*\n", "", (home / "race.txt").read_text())
    text = text.replace("conditions start\n", f"conditions start\n{start}throttle 0 hwmon/hwmon1/oc1_event_cnt\n")
    text = text.replace("conditions round 2\n", f"conditions round 2\n{later}throttle 3 hwmon/hwmon1/oc1_event_cnt\n")
    (home / "race.txt").write_text(
        text.replace("system ", "board NVIDIA Jetson Orin Nano Developer Kit\nl4t # R36\nsystem ", 1)
    )
    receipt = read_receipt(home)
    assert receipt.host.machine == "NVIDIA Jetson Orin Nano Developer Kit"
    assert receipt.host.versions["l4t"] == "# R36"
    assert receipt.environment == {
        "power mode": "MAXN", "gpu clock": "918-918 MHz", "cpu policy0 clock": "115.2-1510.4 MHz",
    }  # fmt: skip
    assert receipt.conditions[2].temperatures_c == {"gpu-thermal": 45.5}
    for word in ("power mode changed from MAXN to 15W", "throttling counted by hwmon/hwmon1/oc1_event_cnt", "ran at 306"):
        assert any(word in each for each in receipt.warnings), word


def test_the_command_line_keeps_it(raced: tuple[Path, str]) -> None:
    folder, _ = raced
    (packed,) = folder.glob("trtexec-*.tar.gz")
    found = CliRunner().invoke(cli, ["bench", "--receipt", str(packed), str(folder)], env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.output
    assert "1.80x faster" in found.output
    assert "not interleaved call by call" in found.output
    (kept,) = folder.glob("receipt-*.json")
    found = CliRunner().invoke(cli, ["compare", str(packed), str(kept)], env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.output
    kept.unlink()


@pytest.mark.slow
def test_a_plan_is_made_again_from_what_run_sh_packed(tmp_path: Path) -> None:
    def fcn(**more: object) -> BuildOptions:
        out = str(tmp_path / "build")
        return make_options(model="fcn", target="jetson", epochs=2, calibration_samples=128, max_drop=2.0, out=out, **more)

    first = build(fcn())
    done = run_sh(tmp_path / "build" / "bundle", rounds=2)
    assert done.returncode == 0, done.stderr
    (packed,) = (tmp_path / "build" / "bundle").glob("trtexec-*.tar.gz")
    with pytest.raises(EnvironmentDiffers, match="another machine than a jetson-orin-nano"):
        build(fcn(receipt=str(packed)), until="plan")
    build(fcn(receipt=str(packed), trust_times=True), until="plan")
    prices, plan = PriceTable.load(tmp_path / "build" / "prices.json"), Plan.load(tmp_path / "build" / "plan.json")
    assert prices.network_us == plan.dense_us == pytest.approx(2250.0), "what trtexec timed"
    assert prices.provenance == "estimated", "of a race, not of layers"
    assert "Orin" in prices.method
    assert first.plan.dense_us != plan.dense_us


# ---------------------------------------------------------------------------------------------- what may be wrong with it


def change(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


def cut(folder: Path, name: str) -> None:
    text = (folder / name).read_text()
    (folder / name).write_text(text[: len(text) // 2])


def unfinished(folder: Path) -> None:
    (folder / "race.txt").rename(folder / "race.part")


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "log cut short": (lambda at: cut(at, "time-dense-e2e-7.log"), "no whole log"),
    "log without an end": (lambda at: change(at, "time-dense-gpu-3.log", "&&&& PASSED", ""), "did not come to its end"),
    "times cut short": (lambda at: cut(at, "times-dense-gpu-2.json"), "not trtexec's times, or not all"),
    "times left out": (
        lambda at: change(at, "times-dense-gpu-2.json", (at / "times-dense-gpu-2.json").read_text().splitlines()[5] + "\n", ""),
        "inferences are timed here",
    ),
    "times of another kind": (
        lambda at: (at / "times-dense-e2e-1.json").write_text('[{"name": "conv"}]'),
        "not trtexec's times",
    ),
    "a negative time": (
        lambda at: change(at, "times-dense-e2e-1.json", '"latencyMs" : 2.25', '"latencyMs" : -1'),
        "are timed here",
    ),
    "times missing": (lambda at: (at / "times-compressed-gpu-1.json").unlink(), "not trtexec's times"),
    "no graph": (lambda at: change(at, "time-dense-gpu-1.log", "CUDA Graph: Enabled", "CUDA Graph: Disabled"), "CUDA Graph"),
    "transfers": (lambda at: change(at, "time-dense-gpu-1.log", "transfers: Disabled", "transfers: Enabled"), "Data transfers"),
    "another TensorRT": (lambda at: change(at, "time-dense-gpu-1.log", "v100300", "v8502"), "TensorRT 8.5.2"),
    "stopped": (unfinished, "was not finished"),
    "no last line": (lambda at: change(at, "race.txt", "finished ", "ended "), "nothing is said of: finished"),
    "a turn is missing": (lambda at: change(at, "race.txt", "turn 5 dense gpu\n", ""), "not all of it is told: dense"),
    "nonsense": (lambda at: change(at, "race.txt", "turn 1 dense gpu", "turn one dense gpu"), "cannot be read: 'turn one"),
    "no such version": (lambda at: change(at, "race.txt", "trtexec v100300", "trtexec vX"), "no version of TensorRT"),
    "another format": (lambda at: change(at, "race.txt", "race/1", "race/2"), "its first line is"),
    "no manifest": (lambda at: (at / "manifest.json").unlink(), "cannot read"),
    "binary": (lambda at: (at / "race.txt").write_bytes(bytes(range(256))), "its first line is"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(home: Path, case: str) -> None:
    spoil, word = WRONG[case]
    spoil(home)
    with pytest.raises(BadRecord) as caught:
        read_receipt(home)
    assert word in caught.value.what
    assert caught.value.where
    assert caught.value.where.startswith(str(home))


def test_times_of_another_model_are_refused(raced: tuple[Path, str], home: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", seed=1)
    with pytest.raises(PlanMismatch, match="other artifacts: compressed, dense"):
        keep_receipt(home, other)
    shutil.copy(other / "manifest.json", home / "manifest.json")
    with pytest.raises(PlanMismatch, match="not what the bundle holds: compressed, dense"):
        read_receipt(home)


def test_archives_are_not_trusted(raced: tuple[Path, str], tmp_path: Path) -> None:
    (packed,) = raced[0].glob("trtexec-*.tar.gz")
    half = tmp_path / "trtexec-half.tar.gz"
    half.write_bytes(packed.read_bytes()[: packed.stat().st_size // 2])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "race.txt").symlink_to("/etc/passwd")
    subprocess.run(["tar", "-czf", "linked.tar.gz", "elsewhere"], cwd=tmp_path, check=True)
    for path in (half, tmp_path / "linked.tar.gz", tmp_path / "none.tar.gz"):
        with pytest.raises(BadArtifact):
            read_receipt(path)
    found = CliRunner().invoke(cli, ["bench", "--receipt", str(half)])
    assert found.exit_code == LoritaDeployError.exit_code
    assert "Traceback" not in found.output


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("v8201", "8.2.1"),
        ("v8502", "8.5.2"),
        ("v8601", "8.6.1"),
        ("v100300", "10.3.0"),
        ("v101602", "10.16.2"),
        ("v110300", "11.3.0"),
    ],
)
def test_versions_are_spelled_as_people_do(banner: str, version: str) -> None:
    assert version_of(banner, "here") == version


REAL_LOG = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v8205] # trtexec --loadEngine=model.trt
[09/01/2025-18:06:59] [I] === Inference Options===
[09/01/2025-18:06:59] [I] Batch: Explicit
[09/01/2025-18:06:59] [I] Iterations: 10
[09/01/2025-18:06:59] [I] Duration: 3s (+ 200ms warm up)
[09/01/2025-18:06:59] [I] Sleep time: 0ms
[09/01/2025-18:06:59] [I] Streams: 1
[09/01/2025-18:06:59] [I] ExposeDMA: Disabled
[09/01/2025-18:06:59] [I] Data transfers: Enabled
[09/01/2025-18:06:59] [I] Spin-wait: Disabled
[09/01/2025-18:06:59] [I] Multithreading: Disabled
[09/01/2025-18:06:59] [I] CUDA Graph: Disabled
[09/01/2025-18:06:59] [I] === Device Information ===
[09/01/2025-18:06:59] [I] Selected Device: Tesla V100-PCIE-32GB
[09/01/2025-18:06:59] [I] Compute Capability: 7.0
[09/01/2025-18:07:02] [I] Engine loaded in 1.42 sec.
[09/01/2025-18:07:04] [I] Warmup completed 11 queries over 200 ms
[09/01/2025-18:07:04] [I] Timing trace has 163 queries over 3.05 s
[09/01/2025-18:07:04] [I] Throughput: 53.4426 qps
&&&& PASSED TensorRT.trtexec [TensorRT v8205] # trtexec --loadEngine=model.trt
"""


def test_a_log_is_read_as_trtexec_writes_it(tmp_path: Path) -> None:
    """The options and defaults of trtexec before 11, line by line."""
    path = tmp_path / "time.log"
    path.write_text(REAL_LOG)
    log = Log.read(path)
    assert log.said == {"Data transfers": True, "Spin-wait": False, "CUDA Graph": False}
    assert (log.queries, log.warmups, log.queries_per_s, log.load_ms) == (163, 11, 53.4426, 1420.0)
    assert log.device == {"gpu": "Tesla V100-PCIE-32GB", "compute_capability": "7.0"}
    with pytest.raises(BadRecord, match="asks for: Spin-wait, CUDA Graph"):
        log.require("e2e", "8.2.5", path)
