"""Energy of one inference: the board's own power sensors, read while one artifact runs without pause.

The module's input rail or the sum of its rails, by the INA3221 monitors or by tegrastats: not a wall meter, and called so in
the receipt. Power at rest is measured first, so that what the inference adds can be told. Valid Python 3.6.
"""

import contextlib
import shutil
import subprocess
import threading
import time

from typing import Any, Callable, Dict, Iterator, List, Optional

import board
import clock

INTERVAL_S = 0.1
IDLE_SECONDS = 5.0
FEWEST_READINGS = 10


class Meter:
    """Readings of the power in milliwatt, every 100 ms while `reading`; ``source`` names the rails."""

    def __init__(self, source: str, read: Optional[Callable[[], Optional[float]]]) -> None:
        self.source, self._read = source, read
        self._child: Any = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[List[float]]:
        """Take readings in a thread of its own until the block ends; they are in the list."""
        values: List[float] = []
        done: Any = threading.Event()
        thread = threading.Thread(target=self._poll if self._read else self._follow, args=(done, values), daemon=True)
        thread.start()
        try:
            yield values
        finally:
            done.set()
            if self._child is not None:
                self._child.kill()  # so that nobody waits for its next line, should there be none
            thread.join(5.0)

    def _poll(self, done: Any, values: List[float]) -> None:
        assert self._read
        while not done.wait(INTERVAL_S):
            value = self._read()
            if value is not None:
                values.append(value)

    def _follow(self, done: Any, values: List[float]) -> None:
        command = ["tegrastats", "--interval", str(int(1000 * INTERVAL_S))]
        pipes: Dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "universal_newlines": True}
        child = self._child = subprocess.Popen(command, **pipes)
        try:
            for line in () if done.is_set() else child.stdout or ():
                found = board.tegrastats_mw(line)
                if found:
                    self.source = "tegrastats %s" % found[0]
                    values.append(found[1])
                if done.is_set():
                    break
        finally:
            child.kill()
            child.wait()


def find_meter(root: str = "/") -> Optional[Meter]:
    """The board's power meter; None where it has none that can be read."""
    found = board.rails(root)
    if found:
        return Meter("INA3221 %s" % " + ".join(name for name, _ in found), lambda: _sum(found))
    if root == "/" and shutil.which("tegrastats"):  # which may read what is closed to us
        return Meter("tegrastats", None)
    return None


def _sum(found: List[board.Rail]) -> Optional[float]:
    values = [read() for _, read in found]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def idle_mw(meter: Meter, seconds: float = IDLE_SECONDS) -> Optional[float]:
    """Mean power at rest."""
    with meter.reading() as values:
        time.sleep(seconds)
    return sum(values) / len(values) if len(values) >= FEWEST_READINGS else None


def energy(meter: Meter, call: Callable[[], object], seconds: float, idle: Optional[float]) -> Optional[Dict[str, Any]]:
    """The ``Energy`` of the records: of one ``call``, from mean power and time over ``seconds``; None from too few readings."""
    calls, start = 0, clock.now_ns()
    with meter.reading() as values:
        while clock.now_ns() - start < 1e9 * seconds:
            call()
            calls += 1
        spent = (clock.now_ns() - start) / 1e9
    if len(values) < FEWEST_READINGS:
        return None
    mean = sum(values) / len(values)
    return {
        "source": meter.source,
        "mean_mw": mean,
        "idle_mw": idle,
        "per_call_mj": mean * spent / calls,
        "per_call_above_idle_mj": None if idle is None else (mean - idle) * spent / calls,
        "calls": calls,
        "seconds": spent,
        "readings": len(values),
    }
