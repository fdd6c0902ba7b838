"""What may happen during a fit: stopping, recording, telling, steering, saving.

Those that inherit from `fitopt.Callback` run inside the compiled loop; the others visit from Python.
"""

from .checkpointing import Checkpoint
from .control import AdaptLearningRate, ReduceOnPlateau, SetLearningRate, every, once
from .loggers import CSVLogger
from .plotting import LivePlot
from .printing import PrintGradients, PrintLoss, PrintParameters
from .progress import ProgressBar
from .recording import (
    KeepBest,
    Record,
    RecordAux,
    RecordGradientNorm,
    RecordGradients,
    RecordLearningRate,
    RecordParameters,
    RecordTime,
)
from .stopping import EarlyStopping, StopAfter, StopOnGradient, StopOnLoss, StopOnStep
from .trackers import MLflowLogger, TensorBoardLogger
from .validation import Validate

# fmt: off
__all__ = [
    "AdaptLearningRate", "CSVLogger", "Checkpoint", "EarlyStopping", "KeepBest", "LivePlot",
    "MLflowLogger", "PrintGradients", "PrintLoss", "PrintParameters", "ProgressBar", "Record",
    "RecordAux", "RecordGradientNorm", "RecordGradients", "RecordLearningRate", "RecordParameters",
    "RecordTime", "ReduceOnPlateau", "SetLearningRate", "StopAfter", "StopOnGradient", "StopOnLoss",
    "StopOnStep", "TensorBoardLogger", "Validate", "every", "once",
]
# fmt: on
