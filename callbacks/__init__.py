"""What may happen during a fit: stopping, recording, printing, progress.

Those that inherit from `fitopt.Callback` run inside the compiled loop; the others visit from Python.
"""

from .printing import PrintLoss as PrintLoss
from .progress import ProgressBar as ProgressBar
from .recording import KeepBest as KeepBest
from .recording import Record as Record
from .recording import RecordLearningRate as RecordLearningRate
from .recording import RecordParameters as RecordParameters
from .stopping import EarlyStopping as EarlyStopping
from .stopping import StopOnLoss as StopOnLoss
