"""READ FIRST: every document that flows through the house, in the order in which it flows.

Documents hold no tensors. They are frozen, strict pydantic models: an unknown key, a missing key, a value of another type
or a newer schema is a `BadRecord`. A *document* (subclass of `Document`) is a file of its own and names its schema;
a *part* (subclass of `Part`) lives inside documents. Units are in the names (``_us`` microseconds, ``_ms`` milliseconds,
``_bytes``). Digests are sha256 in hexadecimal.

In this order: `documents` (what all have in common), `environment`, `training`, `network`, `compression` (with the plan, the
hinge), `timing` (with its `ratios`), `artifacts`, `bundles`, `builds`, and `answers` to a person.

Format history: 1 - first version.
"""

from .answers import (
    ArtifactSummary as ArtifactSummary,
    Change as Change,
    CheckpointSummary as CheckpointSummary,
    Comparison as Comparison,
    EngineSummary as EngineSummary,
    Finding as Finding,
    Health as Health,
    LoadCheck as LoadCheck,
    MachineFacts as MachineFacts,
    Quantization as Quantization,
)
from .artifacts import (
    Artifact as Artifact,
    ArtifactList as ArtifactList,
    EngineRecord as EngineRecord,
    Fidelity as Fidelity,
    FidelityReport as FidelityReport,
    TensorSpec as TensorSpec,
)
from .builds import BuildReport as BuildReport, LedgerStep as LedgerStep, StageRecord as StageRecord
from .bundles import Manifest as Manifest, ManifestFile as ManifestFile
from .compression import (
    Budget as Budget,
    CalibrationRecord as CalibrationRecord,
    Candidate as Candidate,
    CandidateTable as CandidateTable,
    Choice as Choice,
    CompressedRecord as CompressedRecord,
    FrontPoint as FrontPoint,
    GroupCalibration as GroupCalibration,
    GroupChoice as GroupChoice,
    LayerCalibration as LayerCalibration,
    LayerTime as LayerTime,
    ParetoFront as ParetoFront,
    Plan as Plan,
    Prediction as Prediction,
    PriceTable as PriceTable,
    Probe as Probe,
    WidthOffer as WidthOffer,
)
from .documents import (
    Document as Document,
    Part as Part,
    Positive as Positive,
    Precision as Precision,
    Provenance as Provenance,
    Role as Role,
    first_wrong as first_wrong,
    schema_name as schema_name,
    write_atomically as write_atomically,
)
from .environment import Accuracy as Accuracy, Host as Host
from .network import CollapsedRecord as CollapsedRecord, Geometry as Geometry, Layer as Layer
from .ratios import ratio_between as ratio_between
from .timing import (
    Conditions as Conditions,
    Deadline as Deadline,
    Energy as Energy,
    Engine as Engine,
    GpuTimes as GpuTimes,
    LatencyRatio as LatencyRatio,
    LatencySeries as LatencySeries,
    NodeTime as NodeTime,
    PrecisionRecord as PrecisionRecord,
    PrecisionTrial as PrecisionTrial,
    Profile as Profile,
    ProfiledArtifact as ProfiledArtifact,
    Receipt as Receipt,
    Settings as Settings,
    Verification as Verification,
    VerifiedArtifact as VerifiedArtifact,
)
from .training import (
    Augmentation as Augmentation,
    DataSummary as DataSummary,
    EpochRecord as EpochRecord,
    LeftAlone as LeftAlone,
    Phase as Phase,
    Recipe as Recipe,
    SampleRecord as SampleRecord,
    TrainingForecast as TrainingForecast,
    TrainRecord as TrainRecord,
)
