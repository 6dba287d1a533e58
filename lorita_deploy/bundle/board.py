"""What sysfs and NVIDIA's tools say of a board: power mode, clocks, temperatures, throttling and power.

Read before, during and after a race, so that a time can be told from the conditions it was taken under. What is not there
is left out. ``root`` is where the file system starts. Standard library only, valid Python 3.6.
"""

import glob
import hashlib
import json
import os
import re
import subprocess

from typing import Any, Callable, Dict, List, Optional, Tuple

Json = Dict[str, Any]

GPU_NAME = re.compile(r"gpu|gv11b|gp10b|ga10b|gb10b")
"""In the names of devfreq devices: 57000000.gpu (Nano), 17000000.gv11b (Xavier), 17000000.gpu (Orin) ..."""
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
"""The rail that feeds the whole module, where a board has one; the others are summed up."""
BELOW = 0.97
"""A clock that is pinned and reads less than this share of its limit was throttled."""


def conditions(at: str, root: str = "/") -> Json:
    """The ``Conditions`` of the records."""
    return {
        "at": at,
        "power_mode": power_mode(root),
        "clocks_mhz": clocks_mhz(root),
        "temperatures_c": temperatures_c(root),
        "throttle_events": throttle_events(root),
    }


def environment(found: Json) -> Dict[str, str]:
    """What of the conditions belongs to the environment: the settings, not the readings."""
    named = {"power mode": found["power_mode"]} if found["power_mode"] else {}
    limits = {"%s clock" % name: "%g-%g MHz" % (low, high) for name, (_, low, high) in found["clocks_mhz"].items()}
    return dict(limits, **named)


def fingerprint(host: Json, settings: Json, found: Json) -> str:
    """sha256 of everything that has to be equal where times are compared; ``found`` are the conditions at the start."""
    text = json.dumps([host, settings, environment(found)], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def changes(readings: List[Json]) -> List[str]:
    """What did not stay as it was at the start, or held the board back, in plain words."""
    first, found = readings[0], []
    for reading in readings[1:]:
        if reading["power_mode"] != first["power_mode"]:
            found.append("power mode changed from %s to %s" % (first["power_mode"], reading["power_mode"]))
        for name, (now, low, high) in reading["clocks_mhz"].items():
            _, first_low, first_high = first["clocks_mhz"].get(name, (0.0, low, high))
            if (low, high) != (first_low, first_high):
                found.append("%s clock limits changed from %g-%g to %g-%g MHz" % (name, first_low, first_high, low, high))
            elif low == high and now < BELOW * high:
                found.append("%s clock is pinned to %g MHz but ran at %g: throttled" % (name, high, now))
        for name, count in reading["throttle_events"].items():
            if count > first["throttle_events"].get(name, count):
                found.append("throttling counted by %s" % name)
    return sorted(set(found))


# ---------------------------------------------------------------------------------------------- readings


def power_mode(root: str = "/") -> Optional[str]:
    """The name of nvpmodel's mode, from its files or else from the tool. Numbers differ from board to board: of no use."""
    number = re.search(r"pmode:(\d+)", _text(os.path.join(root, "var/lib/nvpmodel/status")) or "")
    names = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", _text(os.path.join(root, "etc/nvpmodel.conf")) or "")
    if number and names:
        return {int(each): name for each, name in names}.get(int(number.group(1)))
    try:
        command = [os.path.join(root, "usr/sbin/nvpmodel"), "-q"]
        told = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"NV Power Mode:\s*(\S+)", told.decode("utf-8", "replace"))
    return found.group(1) if found else None


def clocks_mhz(root: str = "/") -> Dict[str, List[float]]:
    """Current, lowest and highest allowed frequency of the GPU, the memory controller and each kind of core."""
    found = {}
    for folder in _glob(root, "sys/class/devfreq/*"):
        name = clock_name(os.path.basename(folder))
        values = [_number(os.path.join(folder, each)) for each in ("cur_freq", "min_freq", "max_freq")]
        if name and None not in values:
            name = name if name not in found else os.path.basename(folder)  # Thor's GPU has several clocks
            found[name] = [value / 1e6 for value in values if value is not None]
    for folder in _glob(root, "sys/devices/system/cpu/cpufreq/policy*"):
        values = [_number(os.path.join(folder, "scaling_%s_freq" % each)) for each in ("cur", "min", "max")]
        if None not in values:
            found["cpu " + os.path.basename(folder)] = [value / 1e3 for value in values if value is not None]
    return found


def clock_name(device: str) -> Optional[str]:
    """What a devfreq device clocks; None where that is neither the GPU nor the memory."""
    if "emc" in device:
        return "memory"
    return "gpu" if GPU_NAME.search(device) else None


def temperatures_c(root: str = "/") -> Dict[str, float]:
    """Zone to degrees; a zone that is switched off cannot be read."""
    found = {}
    for folder in _glob(root, "sys/class/thermal/thermal_zone*"):
        name, value = _text(os.path.join(folder, "type")), _number(os.path.join(folder, "temp"))
        if name and value is not None:
            found[name] = value / 1e3
    return found


def throttle_events(root: str = "/") -> Dict[str, int]:
    """Counters and alarms that rise when the board holds itself back: over-current, heat, low voltage."""
    patterns = (
        "sys/class/hwmon/hwmon*/oc*_event_cnt",
        "sys/class/hwmon/hwmon*/curr*_crit_alarm",
        "sys/class/hwmon/hwmon*/curr*_max_alarm",
        "sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count",
    )
    found = {}
    for pattern in patterns:
        for path in _glob(root, pattern):
            value = _number(path)
            if value is not None:
                found["/".join(path.split(os.sep)[-3:])] = int(value)
    for path in _glob(root, "sys/devices/platform/soc/soc:firmware/get_throttled"):  # Raspberry Pi: bits, hexadecimal
        text = _text(path) or ""
        if re.match(r"(0x)?[0-9a-fA-F]+\Z", text):
            found["get_throttled"] = int(text, 16)
    return found


# ---------------------------------------------------------------------------------------------- power


Rail = Tuple[str, Callable[[], Optional[float]]]
"""Its name, and a function that reads its power in milliwatt."""


def rails(root: str = "/") -> List[Rail]:
    """The rails to be added up for the power of the module, from the INA3221 monitors of a Jetson; empty where there are none.

    JetPack 5 and later: hwmon, voltage and current of each channel. JetPack 4: iio, power of each channel. Channel 7 is the
    sum of the shunt voltages, and channels called NC are not connected.
    """
    found: List[Rail] = []
    for folder in _glob(root, "sys/class/hwmon/hwmon*"):
        if _text(os.path.join(folder, "name")) == "ina3221":
            for label in _glob(folder, "in[1-6]_label"):
                channel = os.path.basename(label)[2]
                paths = [os.path.join(folder, "%s%s_input" % (kind, channel)) for kind in ("in", "curr")]
                found.append((_text(label) or "", _product(*paths)))
    for label in _glob(root, "sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*"):
        path = os.path.join(os.path.dirname(label), "in_power%s_input" % label.rsplit("_", 1)[1])
        found.append((_text(label) or "", _reader(path)))
    found = [(name, read) for name, read in found if name and name != "NC" and read() is not None]
    return [rail for rail in found if rail[0] in TOTAL_RAILS] or found


def tegrastats_mw(line: str) -> Optional[Tuple[str, float]]:
    """Rails and their power from one line of tegrastats, such as ``VDD_IN 4532mW/4532mW`` (now, average)."""
    told = re.findall(r"\b((?:VDD|POM|VIN|NC|SYS|CPU|GPU|CV|VDDQ)\w*) (\d+)(?:mW)?/\d+(?:mW)?", line)
    told = [(name, power) for name, power in told if name != "NC"]
    chosen = [each for each in told if each[0] in TOTAL_RAILS] or told
    return (" + ".join(name for name, _ in chosen), float(sum(int(power) for _, power in chosen))) if chosen else None


def _reader(path: str) -> Callable[[], Optional[float]]:
    return lambda: _number(path)


def _product(volts: str, amperes: str) -> Callable[[], Optional[float]]:
    def read() -> Optional[float]:
        millivolt, milliampere = _number(volts), _number(amperes)
        return None if millivolt is None or milliampere is None else millivolt * milliampere / 1e3

    return read


# ---------------------------------------------------------------------------------------------- files


def _glob(root: str, pattern: str) -> List[str]:
    return sorted(glob.glob(os.path.join(glob.escape(root), pattern)))


def _text(path: str) -> Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return None


def _number(path: str) -> Optional[float]:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None
