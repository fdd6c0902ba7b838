"""A progress bar."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from fitopt.callback import Fit, HostCallback, RunningFits

from .printing import check_logger


class ProgressBar(HostCallback):
    """A tqdm bar with rate, loss and the time left; in a notebook it is a widget.

    It is redrawn after every chunk, some times a second. Of many fits at once it counts those that have
    ended.

    **Arguments:**

    - `logger`: a `logging.Logger`, whose `info` gets the bar as a line each ten seconds, in place of the
        terminal: for jobs that write a log file.
    - `options`: whatever `tqdm` takes besides, such as `desc`, `file`, `leave` or `mininterval`.

    **Raises:** `TypeError` for what is no logger; when the fit starts, what `tqdm` raises for an option
    that it does not know.

    >>> import io
    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> bar = ProgressBar(file=io.StringIO(), desc="x")
    >>> fit = OptaxOptimizer(lambda s: s["x"] ** 2, optimizers.sgd(0.25), bar)
    >>> _ = fit.run({"x": Parameter("x", 1.0)}, max_steps=4)
    >>> print(bar.options["file"].getvalue().split("\\r")[-1].strip()[:8])
    x: 100%|
    """

    every: int | None = None
    uses: tuple[str, ...] = ()
    steers = False

    def __init__(self, *, logger: logging.Logger | None = None, **options: Any):
        self.logger: logging.Logger | None = check_logger("ProgressBar: logger", logger)
        if logger is not None:
            options = {"file": _Lines(logger), "mininterval": 10.0, **options}
        self.options: dict[str, Any] = options

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[Any]:
        first = len(fit.history["loss"])
        hidden = {} if fit.writes else {"disable": True}
        with self._bar(hidden, total=fit.max_steps, initial=first, unit="step") as bar:

            def show(step: int, loss: Any) -> None:
                if bar.n == first:
                    bar.unpause()  # compilation is over: the rate counts from here
                bar.set_postfix_str(f"loss {float(loss):.6g}", refresh=False)
                bar.update(step + 1 - bar.n)

            yield lambda step, diff, static, history, aux, loss, grads: show(step, loss)
            # The bar ends complete, also where the fit has stopped early.
            bar.total = bar.n = fit.history["n_steps"]
            bar.set_postfix_str(f"loss {fit.history['final_loss']:.6g}", refresh=False)

    @contextlib.contextmanager
    def open_many(self, fits: RunningFits) -> Iterator[Callable[[], None]]:
        with self._bar({}, total=fits.total, initial=fits.done, unit="fit") as bar:

            def show() -> None:
                if fits.done:
                    bar.set_postfix_str(f"best loss {fits.best_loss:.6g}", refresh=False)
                bar.update(fits.done - bar.n)

            yield show
            show()

    def _bar(self, hidden: dict[str, bool], **options: Any) -> Any:
        if self.logger is None:
            from tqdm.auto import tqdm  # it takes as long to import as all of fitopt
        else:
            from tqdm.std import tqdm
        return tqdm(**{**options, **self.options, **hidden})


class _Lines:
    """A file for tqdm to draw on that hands each drawing to a logger."""

    def __init__(self, logger: logging.Logger):
        self.logger = logger

    def write(self, text: str) -> None:
        if line := text.strip():
            self.logger.info(line)

    def flush(self) -> None:
        pass
