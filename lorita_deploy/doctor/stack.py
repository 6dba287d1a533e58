"""Is a machine the target it should be, and does it run the software that the target's profile says?

`check_stack` judges facts, whoever gathered them: `this_machine` does it here, a device's agent over SSH.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..profiles import Profile, all_profiles, number, profile_of_l4t
from ..records import Finding, MachineFacts
from ..targets import Target, all_targets, device_tree_model, matches, smaller_by, this_host

RELEASE = Path("/etc/nv_tegra_release")
CUDA = Path("/usr/local/cuda/version.json")
OLDEST_PYTHON = (3, 6)
"""The bundle's runner needs no more."""


def with_stack(findings: Iterable[Finding], facts: MachineFacts, target: Target) -> Iterator[Finding]:
    """``findings`` about a machine, and what ``target`` asks of it. Where both speak of one subject, the target's word holds,
    but for what is missing in general."""
    asked = {each.subject: each for each in check_stack(facts, target)}
    for finding in findings:
        told = asked.get(finding.subject)
        if told is None or (finding.state == "missing" and told.state != "missing"):
            yield finding
    yield from asked.values()


def check_stack(facts: MachineFacts, target: Target) -> Iterator[Finding]:
    """``missing``: what is built for the target cannot be expected to run there. ``note``: it will, but not as planned."""
    yield _identity(facts, target)
    yield _python(facts)
    if target.runtime != "tensorrt" or target.profile is None:
        yield _package(facts, "onnxruntime" if target.runtime == "onnxruntime" else "torch")
        return
    profile = target.profile
    if facts.l4t is not None:
        yield _jetpack(facts.l4t, target, profile)
    yield _tensorrt(facts, target, profile)
    if "cuda" in facts.versions:
        yield _cuda(facts.versions["cuda"], target, profile)


def _identity(facts: MachineFacts, target: Target) -> Finding:
    here = facts.board or f"{facts.architecture}, no board"
    if _is(facts, target):
        return Finding(subject="target", state="ok", found=f"{here} is {target.name}")
    known = ", ".join(each.name for each in all_targets() if _is(facts, each))
    fix = f"choose a --target that it is: {known}" if known else "choose another machine"
    found = f"{here}{smaller_by(target, facts.memory_bytes)} is not {target.name}"
    return Finding(subject="target", state="missing", found=found, fix=fix)


def _is(facts: MachineFacts, target: Target) -> bool:
    return matches(target, architecture=facts.architecture, board=facts.board, cuda=facts.cuda, memory_bytes=facts.memory_bytes)


def _python(facts: MachineFacts) -> Finding:
    found = facts.versions.get("python")
    if found is None:
        return Finding(subject="python", state="missing", found="none was found", fix="install Python 3.6 or newer there")
    if number(found)[:2] < OLDEST_PYTHON:
        return Finding(subject="python", state="missing", found=found, fix="the bundle's runner needs Python 3.6 or newer")
    return Finding(subject="python", state="ok", found=found)


def _package(facts: MachineFacts, name: str) -> Finding:
    if name in facts.versions:
        return Finding(subject=name, state="ok", found=facts.versions[name])
    return Finding(subject=name, state="missing", found="not installed", fix=f"python3 -m pip install {name} there")


def _jetpack(release: str, target: Target, profile: Profile) -> Finding:
    """Jetson Linux says which JetPack it is of."""
    found = profile_of_l4t(release)
    if found is None:
        known = ", ".join(f"{each.name}: {', '.join(each.l4t)}" for each in all_profiles().values() if each.l4t)
        return Finding(subject="JetPack", state="note", found=f"Jetson Linux {release}: no known JetPack (known: {known})")
    told = f"Jetson Linux {release}, that is {found.title}"
    if found.name == profile.name:
        return Finding(subject="JetPack", state="ok", found=told)
    if found.name in target.profiles:
        fix = f"build for it: --target {target.name}@{found.name}"
    else:
        fix = f"no profile of {target.name}: check with targets show {target.name}"
    return Finding(subject="JetPack", state="note", found=f"{told}; {target.spelled} was asked for", fix=fix)


def _tensorrt(facts: MachineFacts, target: Target, profile: Profile) -> Finding:
    """Newer reads what older reads; an older one may not load what is written for the profile."""
    found, wanted = facts.versions.get("tensorrt"), profile.tensorrt
    if found is None:
        fix = "sudo apt install tensorrt python3-libnvinfer there (part of JetPack), and use the system's own python3"
        return Finding(subject="tensorrt", state="missing", found="not installed", fix=fix)
    here, there = number(found)[:3], number(wanted)[:3]
    if here == there[: len(here)]:
        return Finding(subject="tensorrt", state="ok", found=f"{found}, as {target.spelled} says")
    same = [name for name in target.profiles if number(all_profiles()[name].tensorrt)[:2] == here[:2]]
    fix = f"build for it: --target {target.name}@{same[-1]}" if same else "a TensorRT from pip? use the one that JetPack brings"
    state = "missing" if here < there else "note"
    return Finding(subject="tensorrt", state=state, found=f"{found}; {target.spelled} has {wanted}", fix=fix)  # type: ignore[arg-type]


def _cuda(found: str, target: Target, profile: Profile) -> Finding:
    if number(found)[:2] == number(profile.cuda):
        return Finding(subject="CUDA", state="ok", found=found)
    return Finding(subject="CUDA", state="note", found=f"{found}; {target.spelled} has {profile.cuda}")


# ---------------------------------------------------------------------------------------------- facts of this machine


def this_machine() -> MachineFacts:
    """What this machine says of itself."""
    host = this_host()
    return machine_facts(
        architecture=platform.machine(),
        board=device_tree_model(),
        cuda=Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvhost-gpu").exists(),
        memory_bytes=host.memory_bytes,
        versions=host.versions,
        release=_text(RELEASE),
        toolkit=_text(CUDA),
    )


def machine_facts(
    *,
    architecture: str,
    board: str,
    cuda: bool,
    memory_bytes: int,
    versions: Mapping[str, str],
    release: str,
    toolkit: str,
) -> MachineFacts:
    """``release`` and ``toolkit`` are the texts of `RELEASE` and `CUDA`, empty where there are no such files."""
    found = cuda_version(toolkit)
    more = {} if found is None else {"cuda": found}
    return MachineFacts(
        architecture=architecture,
        board=board,
        cuda=cuda,
        memory_bytes=memory_bytes,
        l4t=l4t_release(release),
        versions={**versions, **more},
    )


def l4t_release(text: str) -> str | None:
    """Release of Jetson Linux, such as ``36.4.3``, from ``# R36 (release), REVISION: 4.3, ...``; None on other machines."""
    found = re.search(r"R(\d+)[^,]*,\s*REVISION:\s*([\d.]+)", text)
    return f"{found[1]}.{found[2].rstrip('.')}" if found else None


def cuda_version(text: str) -> str | None:
    """Of the toolkit that is installed; None where there is none, or its file is not as expected."""
    try:
        return str(json.loads(text)["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
