"""What the stages of one build share: the options resolved, and everything finished stages left in the build folder.

Stages hand over through the folder only: each property below reads what an earlier stage wrote, once, when it is first
asked for. So a resumed build decides from the same bytes as an undisturbed one.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..devices.address import find_device
from ..errors import LoritaDeployError
from ..networks import CompressedNetwork, load_weights
from ..ports import Device, Exporter, ModelSpec, Task, find_exporter, find_model, of_a_family
from ..records import (
    Accuracy,
    Artifact,
    ArtifactList,
    Candidate,
    CandidateTable,
    CollapsedRecord,
    CompressedRecord,
    DataSummary,
    FidelityReport,
    Geometry,
    Plan,
    Precision,
    PriceTable,
    Receipt,
    Recipe,
    Settings,
)
from ..targets import is_local, load_target
from .acceptance import chosen_precision
from .folder import BuildFolder
from .given import data_given, dataset_given, weights_given
from .options import BuildOptions
from .stage import Stage as Stage
from .watch import Noting, Watch as Watch

if TYPE_CHECKING:
    from torch import nn

    from ..compress.calibrate import Calibration
    from ..compress.compressor import Compressor
    from ..compress.widths import Narrowable
    from ..train.splits import Dataset

TRAINED_HERE_SIZE = 64
"""Input size of torchvision and timm classifiers that are trained here, where none is asked for."""

EVALUATION_BATCH = 128

RUNTIME = "onnxruntime"
"""What times artifacts on this machine. If its target runs another runtime, it is not measured by this one, but estimated."""


class Build:
    """One build: options, target, folder, and what the stages have made so far."""

    def __init__(
        self, options: BuildOptions, *, watch: Watch | None = None, model: nn.Module | None = None, task: Task | None = None
    ) -> None:
        if (model is None) != (task is None):
            raise ValueError("a model of your own needs a task that says how it is judged, and a task a model")
        self.options = options
        self.watch = Noting(watch or Watch())
        self.folder = BuildFolder(options.folder)
        self.target = load_target(options.target)
        self.budget = options.budget
        self.own_model = model
        self.own_task = task

    # ------------------------------------------------------------------------------------------ the network asked for

    @cached_property
    def spec(self) -> ModelSpec:
        """The model plug-in (not asked for when the network was handed in)."""
        return find_model(self.options.model)

    @property
    def trains(self) -> bool:
        return self.options.train and not self.options.sample and self.own_model is None

    @cached_property
    def checkpoint(self) -> Path | None:
        """The weights to start from."""
        return weights_given(self)

    @cached_property
    def recipe(self) -> Recipe:
        return self.options.recipe_from(self.spec.recipe_called(self.options.recipe))

    @property
    def input_size(self) -> int:
        if self.options.input_size:
            return self.options.input_size
        return TRAINED_HERE_SIZE if self.trains and of_a_family(self.options.model) else self.spec.input_size

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.spec.input_shape(self.input_size)

    @property
    def classes(self) -> int:
        """How many classes the network tells apart."""
        found = self.options.classes or len(self.data.classes) or self.spec.classes
        if not found:
            raise LoritaDeployError("the number of classes is not known", fix="say it with --classes N")
        return found

    def blank(self) -> nn.Module:
        """A plain network of this architecture, freshly initialised from the seed (or a copy of the one handed in)."""
        from .blank import blank_network

        return blank_network(self)

    @cached_property
    def device(self) -> str:
        """Where torch computes. Raises `UnknownName`."""
        from ..train.loop import require_device

        return require_device(self.options.torch_device)

    # ------------------------------------------------------------------------------------------ data

    @property
    def data_name(self) -> str | None:
        """The labelled data set; None where only unlabelled images were given."""
        return data_given(self)

    @cached_property
    def dataset(self) -> Dataset:
        return dataset_given(self)

    @cached_property
    def data(self) -> DataSummary:
        return DataSummary.load(self.folder / "data.json")

    @cached_property
    def task(self) -> Task:
        from .tasks import images_task, labelled_task

        if self.own_task is not None:
            return self.own_task
        return images_task(self) if self.data_name is None else labelled_task(self)

    # ------------------------------------------------------------------------------------------ what stages left

    @cached_property
    def collapsed(self) -> CollapsedRecord:
        return CollapsedRecord.load(self.folder / "collapsed.json")

    @cached_property
    def dense(self) -> nn.Module:
        """The collapsed network, as torch's own module."""
        module = self.blank()
        load_weights(module, self.folder / "collapsed.safetensors")
        return module.eval().to(self.device)

    @property
    def geometries(self) -> dict[str, Geometry]:
        return {layer.name: layer.geometry for layer in self.collapsed.layers}

    @cached_property
    def calibration(self) -> Calibration:
        from ..compress.calibrate import Calibration

        return Calibration.load(self.folder.path)

    @cached_property
    def compressor(self) -> Compressor:
        """Makes the networks that plans describe."""
        from ..compress.compressor import Compressor

        return Compressor(self.dense, self.geometries, self.calibration, self.task.calibration, narrowable=self.narrowable)

    @cached_property
    def narrowable(self) -> Narrowable:
        """What of the dense network may become narrower."""
        from ..compress.widths import Narrowable

        options, task = self.options, self.task
        given = {"samples": options.calibration_samples, "seed": options.seed}
        return Narrowable(self.dense, self.geometries, task.calibration, examples=task.examples, **given)

    @cached_property
    def offered(self) -> CandidateTable:
        return CandidateTable.load(self.folder / "candidates.json")

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return self.offered.candidates

    @cached_property
    def prices(self) -> PriceTable:
        return PriceTable.load(self.folder / "prices.json")

    @cached_property
    def plan(self) -> Plan:
        return Plan.load(self.folder / "plan.json")

    @cached_property
    def compressed(self) -> CompressedNetwork:
        from ..compress.compressor import load_compressed

        module = load_compressed(self.blank(), self.plan, self.folder / "compressed.safetensors")
        record = CompressedRecord.load(self.folder / "compressed.json")
        return CompressedNetwork(module.eval().to(self.device), record, self.plan)

    @cached_property
    def exported(self) -> ArtifactList:
        return ArtifactList.load(self.folder / "artifacts.json")

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        return self.exported.artifacts

    @cached_property
    def fidelity(self) -> FidelityReport:
        return FidelityReport.load(self.folder / "fidelity.json")

    @cached_property
    def receipt(self) -> Receipt:
        return Receipt.load(self.folder / "receipt.json")

    def validation(self) -> Accuracy:
        """Of the dense network, as the collapse stage found it."""
        return self.collapsed.accuracy[0]

    # ------------------------------------------------------------------------------------------ how artifacts are made

    @cached_property
    def exporter(self) -> Exporter:
        return find_exporter("onnx")

    @property
    def asked_precision(self) -> Precision | Literal["auto"]:
        return self.options.precision or self.target.limits.precision

    @property
    def precision(self) -> Precision:
        """What artifacts are written in: fp32, or what the precision stage chose."""
        return chosen_precision(self.folder / "precision.json", self.asked_precision)

    @property
    def opset(self) -> int:
        return self.options.opset or self.target.limits.opset

    @property
    def ir_version(self) -> int:
        return self.target.ir_version_for(self.opset)

    @cached_property
    def board(self) -> Device:
        """Where times are taken."""
        return find_device(self.options.device)

    @property
    def here(self) -> bool:
        """Whether that is this machine."""
        return self.options.device == "local"

    @cached_property
    def on_target(self) -> bool:
        """Whether these are the target's own times (a board that is not the target was refused before anything ran)."""
        return not self.here or (is_local(self.target) and self.target.runtime == RUNTIME)

    @property
    def runtime(self) -> str:
        """What times artifacts: the target's own runtime on a board."""
        return RUNTIME if self.here else self.target.runtime

    @property
    def settings(self) -> Settings:
        """How that runtime is set while timing. One thread is the default for comparisons."""
        return Settings(
            runtime=self.runtime, threads=self.options.threads, graph_level="all", spinning=False, batch=self.options.batch
        )

    @property
    def kind(self) -> str:
        """What the timed machine is called in records."""
        return self.target.name if self.on_target else "cpu"

    @property
    def host_key(self) -> str:
        """Changes when measured times would no longer hold."""
        return hashlib.sha256(self.board.host().model_dump_json().encode()).hexdigest()
