"""Runs on a device, through a real sshd on this machine: what arrives, what is left behind, and everything that may break."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from openssh import children
from small_onnx import write_small_onnx

from lorita_deploy.devices import connection as connection_module, ssh as ssh_module
from lorita_deploy.devices.address import find_device
from lorita_deploy.devices.connection import SINCE_8_7, _shell_word, _talk, _version_of_ssh
from lorita_deploy.devices.look import kind_of, require_target
from lorita_deploy.errors import (
    BadArtifact,
    DeviceBusy,
    DeviceUnfit,
    DeviceUnreachable,
    EnvironmentDiffers,
    LoritaDeployError,
    OutOfResource,
)
from lorita_deploy.records import Receipt
from lorita_deploy.targets import load_target, this_host

PYTHON27 = Path.home() / ".pyenv/versions/2.7.18/bin/python"
PYTHON36 = Path.home() / ".pyenv/versions/3.6.15/bin/python"
CLIENT = """
import json, sys
from pathlib import Path
from lorita_deploy.devices.address import find_device
from lorita_deploy.devices.connection import _shell_word
address, folder = sys.argv[1:]
find_device(address).run(Path(folder), json.loads((Path(folder) / "asked.json").read_text()), timeout_s=60)
"""
"""A client in a process of its own: the folder, with the job in it, is its argument."""


@pytest.fixture
def there(tmp_path):
    """The folder on the device."""
    return tmp_path / "there"


@pytest.fixture
def device(client, there):
    found = find_device(client.address(there))
    yield found
    found.connection.close()


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    write_small_onnx(folder / "model.onnx")
    return folder


def job(folder, seconds=0.3, **changes):
    """A race of one network, over in about so many seconds (and those of loading)."""
    artifact = {"name": "dense", "path": "model.onnx", "sha256": sha256(folder / "model.onnx")}
    samples = 12 if seconds < 1 else 100_000_000
    return {"artifacts": [artifact], "samples": samples, "max_seconds": seconds, **changes}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sent(device, monkeypatch):
    """Names of the files that are sent from here on."""
    found, request = [], device.connection.request

    def listening(verb, *, contents=(), **more):
        found.extend(path.name for path in contents)
        return request(verb, contents=contents, **more)

    monkeypatch.setattr(device.connection, "request", listening)
    return found


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
    return found


def running(there):
    """The folder of the run that is at work."""
    return until(lambda: next((path.parent for path in there.glob("runs/*/state.json")), None))


def in_background(function):
    """Start a thread; the function returned waits for it and gives its result, or raises what it raised."""
    outcome = {}

    def call():
        try:
            outcome["result"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=call)
    thread.start()

    def join():
        thread.join(120)
        assert not thread.is_alive()
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]

    return join


# ---------------------------------------------------------------------------------------------- what arrives


def test_the_result_comes_back_and_no_file_is_sent_twice(device, work, there, monkeypatch):
    names = sent(device, monkeypatch)
    there.mkdir()
    (there / "mine.txt").write_text("not theirs")
    path = device.run(work, job(work, result="own.json", kind="cpu"), timeout_s=60)
    assert path == work / "own.json"
    receipt = Receipt.load(path)
    assert receipt.host.machine == this_host().machine
    assert {"model.onnx", "run.py", "job-own.json"} <= set(names)
    assert not list(there.glob("runs/*")), "the run is cleared away"
    assert (there / "mine.txt").read_text() == "not theirs"
    names.clear()
    again = Receipt.load(device.run(work, job(work, result="own.json", kind="cpu"), timeout_s=60))
    assert again.run_id != receipt.run_id, "measured anew"
    assert names == []
    kept = there / "store" / sha256(work / "model.onnx")
    content = bytearray(kept.read_bytes())
    content[100] ^= 1
    kept.write_bytes(content)
    device.run(work, job(work, result="own.json", kind="cpu"), timeout_s=60)
    assert names == ["model.onnx"], "what was damaged there is sent again"
    assert sha256(kept) == kept.name
    assert os.stat(there / "store").st_mode & 0o077 == 0, "nobody else may read it"


def test_a_smaller_module_is_not_the_target(device):
    """Of a family whose modules call themselves the same; memory as the agent reads it."""
    host = device.look.host
    assert host.memory_bytes == this_host().memory_bytes > 0
    board = {"architecture": "aarch64", "board": "NVIDIA Jetson Orin NX", "cuda": True}

    def module(memory_bytes):
        return device.look.model_copy(update={**board, "host": host.model_copy(update={"memory_bytes": memory_bytes})})

    require_target(module(15_900_000_000), load_target("jetson-orin-nx"), "there")
    assert kind_of(module(15_900_000_000)) == "jetson-orin-nx"
    with pytest.raises(EnvironmentDiffers, match=r"with 7\.9 GB of memory \(16 GB in a jetson-orin-nx\)"):
        require_target(module(7_900_000_000), load_target("jetson-orin-nx"), "there")
    assert kind_of(module(7_900_000_000)) == "cpu"


def test_what_the_runner_finds_arrives_as_our_errors(device, work, there):
    wrong = job(work)
    wrong["artifacts"][0]["sha256"] = "0" * 64
    with pytest.raises(BadArtifact, match="nothing was run") as caught:
        device.run(work, wrong, timeout_s=60)
    assert caught.value.where == "model.onnx"
    assert not list(there.glob("runs/*"))


def test_a_run_that_takes_too_long_is_ended(device, work, there):
    with pytest.raises(DeviceUnreachable, match="did not finish within 1 s"):
        device.run(work, job(work, seconds=30), timeout_s=1)
    assert not list(there.glob("runs/*"))


def test_a_jump_host_of_the_configuration_is_honoured(client, work, there):
    client.configure(
        f"Host board\n  HostName 127.0.0.1\n  HostKeyAlias [127.0.0.1]:{client.port}\n  ProxyJump jump\n"
        f"Host jump\n  HostName 127.0.0.1\n  Port {client.port}\n"
    )
    before = (client.folder / "log").read_text().count("Accepted publickey")
    device = find_device(client.address(there, host="board"))
    assert device.look.folder == str(there)
    device.connection.close()
    assert (client.folder / "log").read_text().count("Accepted publickey") == before + 2


@pytest.mark.parametrize(
    "settings",
    [
        "ControlMaster auto\n  ControlPath {folder}/shared\n  ControlPersist yes",
        "RemoteCommand tmux",
        "StdinNull yes",
        "ForkAfterAuthentication yes",
        "SessionType none",
    ],
    ids=lambda settings: settings.split()[0],
)
def test_what_people_set_for_their_own_sessions_changes_nothing(client, there, settings):
    if settings.split()[0] in SINCE_8_7 and _version_of_ssh() < (8, 7):
        pytest.skip("this client does not know the setting")
    client.configure(f"Host *\n  {settings.format(folder=client.folder)}\n")
    device = find_device(client.address(there))
    assert device.look.folder == str(there)
    assert device.connection.master.poll() is None, "ours to end"
    device.connection.master.kill()
    device.connection.master.wait()
    assert device.connection.request("look", timeout_s=30)["folder"] == str(there)
    device.connection.close()
    until(lambda: not children(client.process.pid), 10.0)
    assert not (client.folder / "shared").exists(), "no master of theirs is left behind"


def test_a_session_that_connects_anew_leaves_no_master(client, there, monkeypatch):
    """As it does when the master is lost just before a request."""
    client.configure("Host *\n  ControlMaster auto\n")
    device = find_device(client.address(there))
    monkeypatch.setattr(device.connection, "_connect", lambda: None)
    asked = []
    monkeypatch.setattr(connection_module, "_talk", lambda ssh, *more: asked.append(ssh) or _talk(ssh, *more))
    assert device.look.folder == str(there)
    assert asked[0][asked[0].index("ControlMaster=no") - 1] == "-o"
    until(lambda: not children(client.process.pid), 10.0)


def test_a_login_script_that_ends_no_line(client, there):
    """Such as one that sets the title of the window."""
    forced = """command="printf '\\\\033]0;orin\\\\007'; eval \\"$SSH_ORIGINAL_COMMAND\\"" """
    with client.letting_in_by(forced):
        device = find_device(client.address(there))
        assert device.look.folder == str(there)
        device.connection.close()


@pytest.mark.parametrize("folder", ["a" * 90, "50%", "${USER}"])
def test_temporary_files_where_no_socket_can_be(client, there, tmp_path, monkeypatch, folder):
    (tmp_path / folder).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / folder))
    device = find_device(client.address(there))
    assert device.look.folder == str(there)
    device.connection.close()


# ---------------------------------------------------------------------------------------------- broken connections


def test_a_connection_that_breaks_is_made_again_and_the_run_goes_on(device, client, work, there):
    device.connection.request("look", timeout_s=30)
    result = in_background(lambda: device.run(work, job(work, seconds=2.0), timeout_s=60))
    at_work = json.loads((running(there) / "state.json").read_text())
    assert client.cut() > 0
    receipt = Receipt.load(result())
    since = at_work["since"].replace(" ", "T").replace("TUTC", "Z")
    assert since <= receipt.started, "one run"
    assert receipt.series[0].n > 12


def test_a_client_that_is_killed_finds_its_run_again(device, client, work, there):
    asked = job(work, seconds=1.5)
    (work / "asked.json").write_text(json.dumps(asked))
    victim = subprocess.Popen([sys.executable, "-c", CLIENT, client.address(there), str(work)])
    run = running(there)
    victim.kill()
    victim.wait()
    assert not (work / "receipt.json").exists()
    until(lambda: (run / "exit.json").exists())
    killed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    time.sleep(1.1)
    receipt = Receipt.load(device.run(work, asked, timeout_s=60))
    assert receipt.started <= killed, "its result was waiting"


@pytest.mark.parametrize("rebooted", [False, True])
def test_a_run_that_vanishes_is_not_waited_for(device, work, there, rebooted):
    """Of a restart, what a device knows afterwards: no process of the run is left, and the machine's boot id is another."""
    result = in_background(lambda: device.run(work, job(work, seconds=30), timeout_s=60))
    state = running(there) / "state.json"
    body = json.loads(state.read_text())
    if rebooted:
        state.write_text(json.dumps(body | {"boot_id": "of the time before"}))
    supervisor = int(Path(f"/proc/{body['group']}/stat").read_text().rpartition(")")[2].split()[1])
    assert body["group"] in children(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    os.killpg(body["group"], signal.SIGKILL)
    with pytest.raises(DeviceUnreachable if rebooted else OutOfResource, match="restarted" if rebooted else "killed"):
        result()
    assert not list(there.glob("runs/*"))


# ---------------------------------------------------------------------------------------------- the device says no


def test_the_second_of_two_users_is_told_who_and_when(device, client, work, there, tmp_path):
    (work / "asked.json").write_text(json.dumps(job(work, seconds=60)))
    command = [sys.executable, "-c", CLIENT, client.address(tmp_path / "ada"), str(work)]
    first = subprocess.Popen(command, env=dict(os.environ, LOGNAME="ada"), stderr=subprocess.DEVNULL)
    group = json.loads((running(tmp_path / "ada") / "state.json").read_text())["group"]
    with pytest.raises(DeviceBusy, match=r"in use by ada@[\w.-]+, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC") as caught:
        device.run(work, job(work), timeout_s=60)
    assert caught.value.exit_code == 6
    assert device.look.busy is not None
    assert device.look.busy["who"].startswith("ada@")
    assert Path(f"/proc/{group}").exists(), "the first is not disturbed"
    first.send_signal(signal.SIGINT)
    first.wait(60)
    assert not Path(f"/proc/{group}").exists(), "Ctrl-C ends the run on the device too"
    assert not list((tmp_path / "ada").glob("runs/*/state.json"))
    device.run(work, job(work), timeout_s=60)


def test_a_full_device_is_said_before_anything_is_sent(client, work, no_room, monkeypatch):
    device = find_device(client.address(no_room("size=100k") / "there"))
    names = sent(device, monkeypatch)
    write_small_onnx(work / "model.onnx", width=64)
    with pytest.raises(OutOfResource, match=r"are to be sent, and 0\.1 MB are free"):
        device.run(work, job(work), timeout_s=60)
    assert names == []
    device.connection.close()


def test_a_device_that_fills_up_keeps_no_half_file(client, work, no_room):
    folder = no_room("size=100k") / "there"
    device = find_device(client.address(folder))
    path = work / "large.bin"
    path.write_bytes(os.urandom(300_000))
    with pytest.raises(OutOfResource, match="No space left on device"):
        device.connection.request("put", timeout_s=30, contents=[path], files=[(sha256(path), 300_000)])
    assert not list(folder.glob("store/*"))
    device.connection.close()


def test_a_device_that_is_full_when_the_run_starts(client, work, no_room):
    folder = no_room("size=100k") / "there"
    device = find_device(client.address(folder))
    content = work / "content"
    content.write_text("something")
    device.connection.request("put", timeout_s=30, contents=[content], files=[(sha256(content), 9)])
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1000))
    request = {"key": "k", "command": ["-c", "import time; time.sleep(60)"], "result": "r", "who": "ada", "limit_s": 90}
    request["files"] = {"content": sha256(content)}
    with pytest.raises(OutOfResource, match="No space left on device"):
        device.connection.request("start", timeout_s=30, **request)
    assert device.look.busy is None, "nothing runs there"
    device.connection.close()


def test_a_device_that_cannot_be_written(client, work, no_room):
    device = find_device(client.address(no_room("ro") / "there"))
    assert not device.look.writable
    with pytest.raises(OutOfResource, match="Read-only file system") as caught:
        device.run(work, job(work), timeout_s=60)
    assert caught.value.exit_code == 6
    assert "?folder=" in str(caught.value.fix)
    device.connection.close()


def test_a_folder_that_cannot_be(client, work, tmp_path):
    """A file is in its way: bad input, which trying again does not mend."""
    (tmp_path / "file").write_text("in the way")
    device = find_device(client.address(tmp_path / "file" / "there"))
    assert not device.look.writable
    with pytest.raises(LoritaDeployError, match="no folder can be made there: Not a directory") as caught:
        device.run(work, job(work), timeout_s=60)
    assert caught.value.exit_code == 2
    assert "?folder=" in str(caught.value.fix)
    device.connection.close()


def test_a_folder_of_an_account_that_nobody_has(client):
    device = find_device(client.address(Path("~no-such-user/there")))
    with pytest.raises(LoritaDeployError, match="no folder can be made there: there is no account of that name") as caught:
        _ = device.look
    assert caught.value.exit_code == 2
    assert "~no-such-user/there" in str(caught.value.where)
    device.connection.close()


def test_a_python_without_packages_is_said_with_the_remedy(client, work, tmp_path, there):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    device = find_device(client.address(there, python=f"{tmp_path}/bare/bin/python"))
    with pytest.raises(DeviceUnfit, match="no numpy and no onnxruntime") as caught:
        device.run(work, job(work), timeout_s=60)
    assert caught.value.exit_code == 3
    assert f"{tmp_path}/bare/bin/python -m pip install numpy onnxruntime" in str(caught.value.fix)
    assert not there.exists(), "nothing was sent"
    device.connection.close()


def test_no_python_at_all(client, there):
    with pytest.raises(DeviceUnfit, match="there is no /nowhere/python3 to run") as caught:
        _ = find_device(client.address(there, python="/nowhere/python3")).look
    assert "apt install python3" in str(caught.value.fix)


@pytest.mark.skipif(not PYTHON27.exists(), reason="no Python 2.7 on this machine")
def test_a_python_that_is_too_old(client, there):
    with pytest.raises(DeviceUnfit, match="cannot run what is asked of it") as caught:
        _ = find_device(client.address(there, python=str(PYTHON27))).look
    assert "3.6 or newer" in str(caught.value.fix)


def test_a_fault_of_our_program_there_keeps_its_traceback(device):
    with pytest.raises(RuntimeError, match="KeyError"):
        device.connection.request("juggle", timeout_s=30)


@pytest.mark.skipif(not PYTHON36.exists(), reason="no Python 3.6 on this machine")
def test_the_oldest_python_understands_us(client, there):
    device = find_device(client.address(there, python=str(PYTHON36)))
    assert device.look.host.versions["python"].startswith("3.6.")
    device.connection.close()


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("~/venv/bin/python3", "~/venv/bin/python3"),
        ("~me/a b/python3", "~me/'a b/python3'"),
        ("/opt/$(ls)/python3", "'/opt/$(ls)/python3'"),
        ("python3; ls", "'python3; ls'"),
    ],
)
def test_a_path_reaches_the_shell_as_it_is_but_for_the_home_folder(path, word):
    assert _shell_word(path) == word


# ---------------------------------------------------------------------------------------------- nobody answers


def refusal(address):
    with pytest.raises(DeviceUnreachable) as caught:
        _ = find_device(address).look
    assert caught.value.exit_code == 5
    assert caught.value.fix
    return caught.value


def test_nobody_listens(client, there):
    error = refusal(client.address(there).replace(f":{client.port}", ":1"))
    assert "Connection refused" in error.what


def test_a_name_that_nobody_has(client):
    assert "resolve" in refusal("ssh://me@board.invalid").what


def test_an_unknown_host_key(client, there):
    client.know(None)
    error = refusal(client.address(there))
    assert "not known" in error.what
    assert f"ssh -p {client.port}" in str(error.fix)


def test_a_changed_host_key(client, there):
    client.know(client.folder / "host2.pub")
    error = refusal(client.address(there))
    assert "host key has changed" in error.what
    assert f"ssh-keygen -R '[127.0.0.1]:{client.port}'; then ssh -p {client.port}" in str(error.fix)


def test_a_key_that_is_not_let_in(client, there):
    client.configure(f"Host *\n  IdentityFile {client.folder}/host2\n")
    (client.folder / "authorized_keys").rename(client.folder / "aside")
    try:
        error = refusal(client.address(there))
    finally:
        (client.folder / "aside").rename(client.folder / "authorized_keys")
    assert "does not let us in" in error.what
    assert "ssh-copy-id" in str(error.fix)


def test_a_device_that_lets_us_in_and_runs_nothing(client, there, monkeypatch):
    monkeypatch.setattr(connection_module, "LAST_WORDS_S", 0.2)
    with client.letting_in_by('command="exec sleep 100 >/dev/null 2>/dev/null" '):
        error = refusal(client.address(there))
    assert "runs no command" in error.what
    assert "echo hello" in str(error.fix)


@pytest.mark.slow
def test_a_connection_that_does_not_come_back(device, client, work, there, monkeypatch):
    monkeypatch.setattr(ssh_module, "PATIENCE_S", 1.0)
    result = in_background(lambda: device.run(work, job(work, seconds=1.5), timeout_s=60))
    run = running(there)
    client.configure("Match all\n  ProxyCommand false\n")  # nothing answers any more
    client.cut()
    with pytest.raises(DeviceUnreachable, match="did not come back") as caught:
        result()
    assert "run the same command again" in str(caught.value.fix)
    until(lambda: (run / "exit.json").exists())
