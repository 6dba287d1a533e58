"""What is sent to devices: old Python, nothing but the standard library, and it removes nothing but its own."""

import ast
import fcntl
import hashlib
import os
import sys
import time
from pathlib import Path

import pytest

from lorita_deploy.devices import onboard
from lorita_deploy.devices.onboard import locks, store

MODULES = sorted(path for path in Path(onboard.__file__).parent.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_it_needs_nothing_but_an_old_python(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names | {other.stem for other in MODULES} | {"machine"}


def kept(folder, content, *, days=0.0):
    """A file of the store, last used so many days ago."""
    path = folder / "store" / hashlib.sha256(content).hexdigest()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    then = time.time() - 86400 * days
    os.utime(path, (then, then))
    return path


def test_pruning_goes_by_age_and_size_and_knows_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "KEPT_BYTES", 250)
    old, used, second, first = (kept(tmp_path, bytes([n]) * 100, days=days) for n, days in enumerate((40, 35, 2, 1)))
    third = kept(tmp_path, b"3" * 100, days=3)
    (tmp_path / "run").mkdir()
    os.link(used, tmp_path / "run" / "model.onnx")
    mine = tmp_path / "store" / "mine.txt"
    mine.write_text("not theirs")
    os.utime(mine, (0, 0))
    store.prune(str(tmp_path))
    assert first.exists()
    assert second.exists()
    assert not third.exists(), "more than is kept"
    assert not old.exists()
    assert used.exists(), "a run has it"
    assert mine.exists()


def test_what_a_killed_process_left_half_is_removed(tmp_path):
    whole = kept(tmp_path, b"whole")
    ours, arriving, theirs = (whole.with_name(f"{name}.part") for name in (f"{'a' * 64}.17", f"{'b' * 64}.18", "mine"))
    for path in (ours, arriving, theirs):
        path.write_bytes(b"half")
    for path in (ours, theirs):
        os.utime(path, (time.time() - 7200,) * 2)
    assert [str(whole)] == list(store.files(str(tmp_path))), "half a file is none"
    store.prune(str(tmp_path))
    assert not ours.exists()
    assert arriving.exists(), "another process is at it"
    assert theirs.exists()
    assert whole.exists()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "a//b", "./a", "a\0b"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    content = kept(tmp_path, b"content")
    with pytest.raises(store.Refused, match="leads out"):
        store.lay_out(str(tmp_path), {name: content.name}, str(tmp_path / "work"))


def test_removing_a_link_leaves_what_it_leads_to(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    store.remove(str(tmp_path / "link"))
    assert (tmp_path / "theirs" / "file").exists()
    assert not (tmp_path / "link").exists()


def test_a_lock_is_held_as_long_as_its_process_has_it_open(tmp_path):
    path = str(tmp_path / "lock")
    assert not locks.is_held(path)
    handle = locks.hold(path, 0.0, 0o666)
    assert handle is not None
    assert locks.is_held(path)
    assert locks.hold(path, 0.1, 0o666) is None
    os.close(handle)
    assert not locks.is_held(path)
    assert os.stat(path).st_mode & 0o777 == 0o666, "other accounts may hold it too"


def test_what_stands_in_a_lock_is_not_believed_blindly(tmp_path):
    path = tmp_path / "lock"
    path.write_text('{"who": "\\u001b[31mada\\n", "since": 3}')
    assert locks.holder(str(path)) == {"who": "[31mada", "since": "3"}
    for damaged in ("", "[]", "{", '{"who": 1}'):
        path.write_text(damaged)
        assert locks.holder(str(path))["who"] == "somebody"


def test_a_look_at_a_lock_does_not_keep_others_from_holding_it(tmp_path):
    path = tmp_path / "lock"
    path.write_text("")
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if locks.hold(str(path), 5.0, 0o666) else 1)
        time.sleep(0.2)
        fcntl.flock(file, fcntl.LOCK_UN)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    ("days", "command", "state"), [(0.9, "run.py", "done"), (1.1, "run.py", "missing"), (0.9, "another", "missing")]
)
def test_a_result_waits_for_a_day_for_the_command_that_it_answers(tmp_path, monkeypatch, days, command, state):
    monkeypatch.syspath_prepend(str(Path(onboard.__file__).parent))
    import runs

    run = tmp_path / "runs" / "key"
    run.mkdir(parents=True)
    for name in ("state.json", "exit.json"):
        (run / name).write_text('{"command": ["run.py"]}')
        os.utime(run / name, (time.time() - 86400 * days,) * 2)
    request = {"folder": str(tmp_path), "key": "key", "result": "receipt.json", "files": {"model.onnx": "0" * 64}, "who": "ada"}
    request["command"] = [command]
    assert runs.start(request)["state"] == state
