"""The network to use on this machine, opened: for programs beside the runner, such as `infer`. Valid Python 3.6."""

import contextlib
import json
import os

from typing import Any, Dict, Iterator, List, Tuple

import prepare
import runner

from job import Json, JobError

HERE = os.path.dirname(os.path.abspath(__file__))


def open_network(job: Json) -> Tuple[Json, Any]:
    """The bundle's manifest, and a session of the network that run.py chose here, with the settings that it ran with.

    Before run.py has run, and where its receipt is of other networks, the first one of the bundle's ``job``, which is what the
    build ships. Raises `JobError`.
    """
    with open(os.path.join(HERE, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    artifact, job["settings"] = choose(job, _receipt())
    runtime, _ = runner.start_runtime(job, settle=True)
    return manifest, prepare.load(job, runtime, artifact)


def _receipt() -> Dict[str, Any]:
    """What run.py wrote here; empty before."""
    path = os.path.join(HERE, "receipt.json")
    if not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise JobError("the receipt cannot be read: %s" % error, path, "remove it, and run python3 run.py again")


def choose(job: Json, receipt: Dict[str, Any]) -> Tuple[Json, Json]:
    """The artifact and the settings: the most accurate network within the deadline where there was one, else the faster."""
    by_name = {each["name"]: each for each in job["artifacts"]}
    name = (receipt.get("deadline") or {}).get("chosen") or receipt.get("faster")
    timed = [each for each in receipt.get("series", ()) if each["name"] == name]
    if not timed or name not in by_name or timed[0]["sha256"] != by_name[name]["sha256"]:
        return dict(job["artifacts"][0], exact=False), job["settings"]
    engine = timed[0].get("engine")
    return dict(by_name[name], exact=bool(engine and engine["exact"])), receipt.get("settings", job["settings"])


@contextlib.contextmanager
def decoding(path: str, manifest: Json) -> Iterator[None]:
    """While the image in ``path`` is read: what pillow has against it becomes a `JobError`."""
    if not manifest["preprocessing"]:
        raise JobError("this network does not take images", manifest["model"], "write a program like infer.py for its inputs")
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # of many kinds, for damaged files
        raise JobError("this image cannot be read: %s" % error, path, "give a whole PNG or JPEG file")


def classify(session: Any, image: Any, classes: List[str]) -> List[Tuple[float, str]]:
    """Share and name of every class, the likeliest first; ``image`` is (1, ...), and repeated where the network has a batch."""
    import numpy

    name, dtype, shape = session.inputs[0]
    batch = shape[0] if isinstance(shape[0], int) else 1
    logits = session.run({name: numpy.repeat(image, batch, 0).astype(dtype)})[0][0].astype("float64")
    shares = numpy.exp(logits - logits.max())
    shares /= shares.sum()
    named = [classes[place] if place < len(classes) else "class %d" % place for place in range(len(shares))]
    return [(float(shares[place]), named[place]) for place in shares.argsort()[::-1]]
