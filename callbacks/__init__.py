"""What may happen during a fit: stopping, recording, telling, steering, saving.

Those that inherit from `fitopt.Callback` run inside the compiled loop; the others visit from Python.
"""

from .checkpointing import Checkpoint as Checkpoint
from .control import ReduceOnPlateau as ReduceOnPlateau
from .control import SetLearningRate as SetLearningRate
from .control import every as every
from .control import once as once
from .loggers import CSVLogger as CSVLogger
from .plotting import LivePlot as LivePlot
from .printing import PrintGradients as PrintGradients
from .printing import PrintLoss as PrintLoss
from .printing import PrintParameters as PrintParameters
from .progress import ProgressBar as ProgressBar
from .recording import KeepBest as KeepBest
from .recording import Record as Record
from .recording import RecordAux as RecordAux
from .recording import RecordGradientNorm as RecordGradientNorm
from .recording import RecordGradients as RecordGradients
from .recording import RecordLearningRate as RecordLearningRate
from .recording import RecordParameters as RecordParameters
from .recording import RecordTime as RecordTime
from .stopping import EarlyStopping as EarlyStopping
from .stopping import StopAfter as StopAfter
from .stopping import StopOnGradient as StopOnGradient
from .stopping import StopOnLoss as StopOnLoss
from .stopping import StopOnStep as StopOnStep
from .trackers import MLflowLogger as MLflowLogger
from .trackers import TensorBoardLogger as TensorBoardLogger
