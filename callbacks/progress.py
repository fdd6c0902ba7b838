"""A progress bar."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from fitopt.callback import Fit, HostCallback


class ProgressBar(HostCallback):
    """A tqdm bar with rate, loss and the time left; in a notebook it is a widget.

    It is redrawn when the loop comes back to Python anyhow, some times a second.

    - `logger`: a `logging.Logger`, whose `info` gets the bar as a line each ten seconds, in place of the
        terminal: for jobs that write a log file.
    - `options`: whatever `tqdm` takes besides, such as `desc`, `file`, `leave` or `mininterval`.
    """

    every = None
    uses = ()

    def __init__(self, *, logger: logging.Logger | None = None, **options: Any):
        if logger is not None:
            options = {"file": _Lines(logger), "mininterval": 10.0, **options}
        self.logger = logger
        self.options = options

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[Any]:
        if self.logger is None:
            from tqdm.auto import tqdm  # it takes as long to import as all of fitopt
        else:
            from tqdm.std import tqdm
        first = len(fit.history["loss"])
        with tqdm(**{"total": fit.max_steps, "initial": first, "unit": "step", **self.options}) as bar:

            def show(step: int, loss: Any) -> None:
                if bar.n == first:
                    bar.unpause()  # compilation is over: the rate counts from here
                bar.set_postfix_str(f"loss {float(loss):.6g}", refresh=False)
                bar.update(step + 1 - bar.n)

            yield lambda step, diff, static, history, aux, loss, grads: show(step, loss)
            # The bar ends complete, also where the fit has stopped early.
            bar.total = bar.n = fit.history["n_steps"]
            bar.set_postfix_str(f"loss {fit.history['final_loss']:.6g}", refresh=False)


class _Lines:
    """A file for tqdm to draw on that hands each drawing to a logger."""

    def __init__(self, logger: logging.Logger):
        self.logger = logger

    def write(self, text: str) -> None:
        if line := text.strip():
            self.logger.info(line)

    def flush(self) -> None:
        pass
