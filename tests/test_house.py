"""Guards the rules of the house: who imports whom, sizes and names of modules, nothing private in what is published."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lorita_deploy.bundle.manifest import PROGRAMS

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "lorita_deploy"
FOLDERS = {"lorita_deploy": LIBRARY, "lorita_exporters": ROOT / "exporters", "lorita_sample_models": ROOT / "sample_models"}

CONTRACTS = {"attention", "errors", "memory", "records", "networks", "forms", "ports", "profiles", "targets"}
ROOMS = {"train", "compress", "measure", "devices"}
MAY_IMPORT = {
    "": CONTRACTS | ROOMS | {"pipeline", "bundle"},  # __init__: the public names
    "__main__": {"cli"},
    "errors": set(),
    "attention": set(),
    "memory": set(),
    "records": {"errors"},
    "networks": {"errors", "records"},
    "forms": {"errors", "records"},
    "ports": {"errors", "records", "own_models"},
    "own_models": {"errors", "records", "ports"},
    "profiles": {"errors", "records"},
    "targets": {"errors", "records", "profiles"},
    # Rooms never import one another; the runner's statistics and its place are for those who measure.
    "train": CONTRACTS,
    "compress": CONTRACTS,
    "measure": CONTRACTS | {"bundle"},
    "devices": CONTRACTS | {"bundle"},
    "bundle": CONTRACTS,
    "report": CONTRACTS,
    "inspection": CONTRACTS,
    "doctor": CONTRACTS | {"devices"},
    "pipeline": CONTRACTS | ROOMS | {"bundle", "inspection", "report"},
    "cli": CONTRACTS | ROOMS | {"bundle", "report", "inspection", "doctor", "pipeline"},
}
PLUG_INS_MAY_IMPORT = {"errors", "records", "ports", "networks", "forms"}
RUNTIMES = {"numpy", "onnxruntime", "tensorrt", "PIL"}
LONGEST = 300
FORBIDDEN_NAMES = re.compile(r"^(utils?|helpers?|common|base|core|manager|misc)$")


def modules():
    """(dotted name, path) of every module that is published."""
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *(part for part in parts if part != "__init__"))), path


def imported(dotted, path):
    """Dotted names of every import anywhere in the module, functions and type checking included."""
    package = dotted if path.name == "__init__.py" else dotted.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            origin = ".".join([*above, *(node.module.split(".") if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def room(dotted):
    """First name under lorita_deploy; empty for the package itself."""
    return dotted.split(".")[1] if "." in dotted else ""


MODULES = list(modules())
IDS = [dotted for dotted, _ in MODULES]


def test_the_tree_is_there():
    assert {room(dotted) for dotted, _ in MODULES if dotted.startswith("lorita_deploy")} <= MAY_IMPORT.keys()
    assert len(MODULES) > 30


@pytest.mark.parametrize(("dotted", "path"), MODULES, ids=IDS)
def test_imports_only_what_it_may(dotted, path):
    package, own = dotted.split(".")[0], room(dotted)
    ships = path.parent.name == "bundle" and path.name in PROGRAMS
    allowed = (set() if ships else MAY_IMPORT[own] | {own}) if package == "lorita_deploy" else PLUG_INS_MAY_IMPORT
    for name in imported(dotted, path):
        origin = name.split(".")[0]
        if origin == "lorita_deploy":
            assert room(name) in allowed, f"{dotted} imports {name}"
        elif origin in FOLDERS:
            assert origin == package, f"{dotted} imports the plug-in {name} by name"


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_ships_needs_nothing_but_a_runtime(name):
    path = LIBRARY / "bundle" / name
    neighbours = {Path(other).stem for other in PROGRAMS}
    for found in imported(f"lorita_deploy.bundle.{path.stem}", path):
        origin = found.split(".")[0]
        assert origin in sys.stdlib_module_names | neighbours | RUNTIMES, f"{name} imports {found}"
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize(("dotted", "path"), MODULES, ids=IDS)
def test_sizes_and_names(dotted, path):
    assert not FORBIDDEN_NAMES.match(path.stem), f"{dotted}: say what it is for"
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST, f"{dotted} has {lines} lines: split it"


@pytest.mark.parametrize(("dotted", "path"), MODULES, ids=IDS)
def test_every_module_says_what_it_is(dotted, path):
    text = path.read_text(encoding="utf-8")
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{dotted} opens without a docstring"


def test_the_library_prints_nothing():
    """Words reach people through the command line (and the runner, which is a program of its own)."""
    for dotted, path in MODULES:
        if room(dotted) == "cli" or path.name in PROGRAMS:
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], dotted


def test_no_duration_is_taken_from_the_time_of_day():
    """It jumps: durations and limits come from monotonic clocks. The age of a file in a device's store is the exception."""
    for dotted, path in MODULES:
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        wall = [call.lineno for call in calls if ast.unparse(call.func) in ("time.time", "time.time_ns", "datetime.now")]
        assert not wall or dotted.startswith("lorita_deploy.devices.onboard."), f"{path}:{wall}"


def test_nothing_is_unpickled():
    pattern = re.compile(r"\bpickle\.load|\bjoblib\b|weights_only=False|allow_pickle=True")
    for dotted, path in MODULES:
        assert not pattern.search(path.read_text(encoding="utf-8")), dotted


# ---------------------------------------------------------------------------------------------- what is published


def published():
    """Every file under version control; where there is no checkout, every file of the tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for folder in (*FOLDERS.values(), ROOT / "tests") for path in folder.rglob("*") if path.is_file()]


def test_no_file_names_a_machine_or_a_registry():
    # Written so that this very file passes.
    machine = re.compile(r"(?<![\w.~:*}])/(?:work|home|root|Users|mnt)/[\w.-]+")
    registry = re.compile(r"pypi\.[o]rg/simple|pythonhosted\.[o]rg|--[i]ndex-url|--[e]xtra-index")
    for path in published():
        if not path.is_file() or path.suffix in {".safetensors", ".png", ".npz", ".onnx"}:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not machine.search(text), f"{path.relative_to(ROOT)}: {machine.search(text).group(0)}"
        assert not registry.search(text), path.relative_to(ROOT)


# ---------------------------------------------------------------------------------------------- what is loaded when

HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "sklearn", "scipy", "accelerate", "pandas")
PROBE = """
import sys
sys.argv = ["lorita-deploy", *sys.argv[1:]]
from lorita_deploy.cli import main
try:
    main()
except SystemExit as stop:
    code = stop.code
print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""
HELP = ["build", "train", "verify", "bench", "compare", "inspect", "doctor", "models list", "targets show", "exporters list"]


@pytest.mark.parametrize("command", ["", *HELP])
def test_help_loads_nothing_heavy_and_is_quick(command):
    def seconds() -> float:
        """Of processor time: wall time would judge the other processes of this machine."""
        before = os.times()
        done = subprocess.run(
            [sys.executable, "-c", PROBE.format(heavy=HEAVY), *command.split(), "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        after = os.times()
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip() == "[]", "torch and its like are imported where they are needed, inside functions"
        assert "Usage: lorita-deploy" in done.stdout
        return (after.children_user - before.children_user) + (after.children_system - before.children_system)

    # Processor time too grows where two threads share a core: what counts is what it can be.
    assert min(seconds() for _ in range(3)) < 1.0


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, lorita_deploy; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_those_that_type_checkers_see():
    import lorita_deploy

    tree = ast.parse((LIBRARY / "__init__.py").read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in checked.body for alias in node.names}
    assert seen == lorita_deploy._PLACES
    for name in lorita_deploy.__all__:
        assert getattr(lorita_deploy, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'tran'"):
        _ = lorita_deploy.tran
