"""A progress bar."""

import contextlib
from collections.abc import Iterator
from typing import Any

from fitopt.callback import Fit, HostCallback


class ProgressBar(HostCallback):
    """A tqdm bar with rate, loss and the time left; in a notebook it is a widget.

    It is redrawn when the loop comes back to Python anyhow, some times a second.

    - `options`: whatever `tqdm` takes besides, such as `desc`, `file` or `leave`.
    """

    every = None
    uses = ()

    def __init__(self, **options: Any):
        self.options = options

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[Any]:
        from tqdm.auto import tqdm  # it takes as long to import as all of fitopt

        with tqdm(**{"total": fit.max_steps, "unit": "step", **self.options}) as bar:

            def show(step: int, loss: Any) -> None:
                if bar.n == 0:
                    bar.unpause()  # compilation is over: the rate counts from here
                bar.set_postfix_str(f"loss {float(loss):.6g}", refresh=False)
                bar.update(step + 1 - bar.n)

            yield lambda step, diff, static, history, aux, loss, grads: show(step, loss)
            # The bar ends complete, also where the fit has stopped early.
            bar.total = fit.history["n_steps"]
            bar.set_postfix_str(f"loss {fit.history['final_loss']:.6g}", refresh=False)
            bar.update(bar.total - bar.n)
            bar.refresh()
