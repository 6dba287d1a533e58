"""What sysfs says of a board, read from a tree laid out as on one."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import board
import power
import pytest

from lorita_deploy.records import Conditions, Energy

NVPMODEL = """\
# comment
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """An Orin Nano under JetPack 6."""
    gpu, monitor = "sys/class/devfreq/17000000.gpu", "sys/class/hwmon/hwmon1"
    write(
        tmp_path,
        {
            "etc/nvpmodel.conf": NVPMODEL,
            "var/lib/nvpmodel/status": "pmode:0001 fmode:quiet",
            f"{gpu}/cur_freq": 918000000,
            f"{gpu}/min_freq": 306000000,
            f"{gpu}/max_freq": 918000000,
            "sys/class/devfreq/13e10000.pcie/cur_freq": 1,
            "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": 1344000,
            "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": 729600,
            "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": 1344000,
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 51312,
            "sys/class/thermal/thermal_zone1/type": "cv0-thermal",  # switched off: its temp cannot be read
            f"{monitor}/name": "ina3221",
            f"{monitor}/in1_label": "VDD_IN",
            f"{monitor}/in1_input": 5000,
            f"{monitor}/curr1_input": 920,
            f"{monitor}/in2_label": "VDD_CPU_GPU_CV",
            f"{monitor}/in2_input": 5000,
            f"{monitor}/curr2_input": 300,
            f"{monitor}/in7_label": "sum of shunt voltages",
            f"{monitor}/in7_input": 4,
            f"{monitor}/curr1_crit_alarm": 0,
            "sys/class/hwmon/hwmon0/name": "tmp451",
            "sys/class/hwmon/hwmon2/oc1_event_cnt": 3,
        },
    )
    return tmp_path


def test_conditions_of_an_orin(orin: Path) -> None:
    found = board.conditions("start", str(orin))
    assert found["power_mode"] == "25W"
    assert found["clocks_mhz"] == {"gpu": [918.0, 306.0, 918.0], "cpu policy0": [1344.0, 729.6, 1344.0]}
    assert found["temperatures_c"] == {"cpu-thermal": 51.312}
    assert found["throttle_events"] == {"hwmon/hwmon1/curr1_crit_alarm": 0, "hwmon/hwmon2/oc1_event_cnt": 3}
    Conditions.model_validate_json(json.dumps(found))
    assert board.environment(found) == {
        "gpu clock": "306-918 MHz",
        "cpu policy0 clock": "729.6-1344 MHz",
        "power mode": "25W",
    }


def test_the_module_rail_is_power_enough(orin: Path) -> None:
    assert [(name, read()) for name, read in board.rails(str(orin))] == [("VDD_IN", 4600.0)]


def test_rails_are_summed_where_none_feeds_the_module(tmp_path: Path) -> None:
    """An AGX Orin: two monitors, channels that are not connected."""
    for monitor, rails in (
        ("hwmon3", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
        ("hwmon4", ("NC", "VDDQ_VDD2_1V8AO", "NC")),
    ):
        write(tmp_path, {f"sys/class/hwmon/{monitor}/name": "ina3221"})
        for place, rail in enumerate(rails, 1):
            folder = f"sys/class/hwmon/{monitor}"
            values = {f"in{place}_label": rail, f"in{place}_input": 20000, f"curr{place}_input": 100 * place}
            write(tmp_path, {f"{folder}/{name}": value for name, value in values.items()})
    meter = power.find_meter(str(tmp_path))
    assert meter
    assert meter.source == "INA3221 VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 + VDDQ_VDD2_1V8AO"
    with meter.reading() as values:
        time.sleep(0.35)
    assert values[0] == 2000 + 4000 + 6000 + 4000


def test_jetpack_4_tells_power_through_iio(tmp_path: Path) -> None:
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    names = {"rail_name_0": "POM_5V_IN", "rail_name_1": "POM_5V_GPU", "in_power0_input": 2310, "in_power1_input": 480}
    write(tmp_path, {f"{folder}/{name}": value for name, value in names.items()})
    assert [(name, read()) for name, read in board.rails(str(tmp_path))] == [("POM_5V_IN", 2310.0)]


def test_energy_is_power_times_time(orin: Path) -> None:
    meter = power.find_meter(str(orin))
    assert meter
    found = power.energy(meter, lambda: time.sleep(0.01), 1.3, idle=3000.0)
    assert found
    Energy.model_validate(found)
    assert found["mean_mw"] == 4600.0
    assert found["per_call_mj"] == pytest.approx(4600.0 * found["seconds"] / found["calls"])
    assert found["per_call_above_idle_mj"] == pytest.approx(1600.0 * found["seconds"] / found["calls"])
    assert power.energy(meter, lambda: None, 0.2, idle=None) is None, "too few readings"


def test_tegrastats_lines() -> None:
    orin = "RAM 2500/7620MB CPU [3%@729,off] GR3D_FREQ 0% cpu@48C VDD_IN 4532mW/4500mW VDD_SOC 1200mW/1200mW"
    assert board.tegrastats_mw(orin) == ("VDD_IN", 4532.0)
    nano = "RAM 1200/3956MB (lfb 4x4MB) CPU [5%@102] PLL@23C CPU@26C POM_5V_IN 1511/1511 POM_5V_GPU 0/0 POM_5V_CPU 124/124"
    assert board.tegrastats_mw(nano) == ("POM_5V_IN", 1511.0)
    agx = "GR3D_FREQ 0% VDD_GPU_SOC 2391mW/2391mW VDD_CPU_CV 398mW/398mW VIN_SYS_5V0 2520mW/2520mW NC 0mW/0mW"
    assert board.tegrastats_mw(agx) == ("VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 5309.0)
    assert board.tegrastats_mw("RAM 1200/3956MB") is None


@pytest.mark.parametrize(("says", "found"), [("echo VDD_IN 4500mW/4500mW; sleep 0.05", 4500.0), ("exec sleep 60", None)])
def test_tegrastats_is_followed_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, found: float | None
) -> None:
    """A script of that name stands in for the board's program; one that falls silent is not waited for, nor left behind."""
    script = tmp_path / "tegrastats"
    script.write_text(f"#!/bin/sh\necho $$ >>{tmp_path}/pids\nwhile true; do {says}; done\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    meter = power.Meter("tegrastats", None)
    start = time.monotonic()
    energy = power.energy(meter, lambda: time.sleep(0.01), 2.0, idle=None)
    assert time.monotonic() - start < 6.0
    assert (energy and energy["mean_mw"]) == found
    assert meter.source == ("tegrastats VDD_IN" if found else "tegrastats")
    (pid,) = (tmp_path / "pids").read_text().split()
    assert not Path(f"/proc/{pid}").exists()


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    found = board.conditions("start", str(tmp_path))
    assert found == {"at": "start", "power_mode": None, "clocks_mhz": {}, "temperatures_c": {}, "throttle_events": {}}
    assert board.environment(found) == {}
    assert power.find_meter(str(tmp_path)) is None
    Conditions.model_validate(board.conditions("start") | {"clocks_mhz": {}})


def test_a_gpu_with_several_clocks(tmp_path: Path) -> None:
    for place, name in enumerate(("gpu-gpc-0", "gpu-nvd-0"), 1):
        values = dict.fromkeys(("cur_freq", "min_freq", "max_freq"), place * 10**8)
        write(tmp_path / "sys/class/devfreq" / name, dict(values))
    assert board.clocks_mhz(str(tmp_path)) == {"gpu": [100.0] * 3, "gpu-nvd-0": [200.0] * 3}


def test_throttling_and_changes_are_said(orin: Path) -> None:
    gpu = orin / "sys/class/devfreq/17000000.gpu"
    write(gpu, {"min_freq": 918000000})
    first = board.conditions("start", str(orin))
    assert board.changes([first, first]) == []
    write(gpu, {"cur_freq": 612000000})
    assert board.changes([first, board.conditions("reload 1", str(orin))]) == [
        "gpu clock is pinned to 918 MHz but ran at 612: throttled"
    ]
    write(gpu, {"min_freq": 306000000})
    (moved,) = board.changes([first, board.conditions("reload 2", str(orin))])
    assert moved == "gpu clock limits changed from 918-918 to 306-918 MHz"
    write(gpu, {"min_freq": 918000000, "cur_freq": 918000000})
    write(orin, {"var/lib/nvpmodel/status": "pmode:0002", "sys/class/hwmon/hwmon2/oc1_event_cnt": 4})
    assert board.changes([first, board.conditions("end", str(orin))]) == [
        "power mode changed from 25W to MAXN_SUPER",
        "throttling counted by hwmon/hwmon2/oc1_event_cnt",
    ]


def test_a_raspberry_pi_tells_its_throttling(tmp_path: Path) -> None:
    write(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": "50005"})
    assert board.throttle_events(str(tmp_path)) == {"get_throttled": 0x50005}


def test_without_its_table_of_names_a_power_mode_is_not_guessed(orin: Path) -> None:
    (orin / "etc/nvpmodel.conf").unlink()
    assert board.power_mode(str(orin)) is None
