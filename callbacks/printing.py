"""Host callbacks that print."""

import contextlib
from collections.abc import Iterator
from typing import Any

from fitopt.callback import Fit, HostCallback

from ._checks import check_every


class PrintLoss(HostCallback):
    """Print the loss at every `every`-th step, and at the last one.

    >>> import jax.numpy as jnp, optax
    >>> from fitopt import OptaxOptimizer, Parameter
    >>> opt = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optax.sgd(0.25), PrintLoss(every=2))
    >>> _ = opt.run({"x": Parameter("x", 0.0)}, max_steps=4)
    step 0: loss 1
    step 2: loss 0.0625
    step 3: loss 0.015625
    """

    uses = ()

    def __init__(self, every: int = 1):
        self.every = check_every("PrintLoss", every)

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[Any]:
        printed = -1

        def show(step: int, loss: Any) -> None:
            nonlocal printed
            printed = step
            print(f"step {step}: loss {float(loss):.6g}", flush=True)

        yield lambda step, diff, static, history, aux, loss, grads: show(step, loss)
        if 0 <= printed < fit.history["n_steps"] - 1:
            show(fit.history["n_steps"] - 1, fit.history["loss"][-1])
