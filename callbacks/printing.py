"""Host callbacks that print a table as the fit goes on."""

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fitopt.callback import Fit, HostCallback
from fitopt.optimizers.arguments import whole
from fitopt.parameter.specification import Spec, is_readable
from fitopt.state import Layout, flatten

_FEW = 4  # entries of an array that are all shown


def check_logger(name: str, logger: Any) -> logging.Logger | None:
    """A logger, or None for the terminal."""
    if not (logger is None or callable(getattr(logger, "info", None))):
        raise TypeError(f"{name} must be a logging.Logger, got {logger!r}")
    return logger


class _Cell(NamedTuple):
    head: str
    text: str
    width: int


class _Table(HostCallback):
    """Prints the step, the loss and what a subclass adds, at every `every`-th step and at the last."""

    uses: tuple[str, ...] = ()
    steers = False

    def __init__(self, every: int = 1, logger: logging.Logger | None = None):
        self.every: int = whole(f"{type(self).__name__}: every", every)
        self.logger: logging.Logger | None = check_logger(f"{type(self).__name__}: logger", logger)

    def cells(self, layout: Layout, last: dict[str, Any]) -> list[_Cell]:
        """What to show besides; `last` holds what `uses` names, of the step that is printed."""
        return []

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[Any]:
        layout = flatten(fit.parameters).layout
        say = _print if self.logger is None else self.logger.info
        if not fit.writes:
            say = lambda line: None
        digits = len(str(fit.max_steps))
        printed = len(fit.history["loss"]) - 1
        headed = False

        def show(step: int, loss: Any) -> None:
            nonlocal printed, headed
            printed = step
            row = [_Cell("step", f"{step}", digits), _number("loss", np.asarray(loss))]
            row += self.cells(layout, fit.last)
            if not headed:
                say(_line(row, [cell.head for cell in row]))
                headed = True
            say(_line(row, [cell.text for cell in row]))

        yield lambda step, diff, static, history, aux, loss, grads: show(step, loss)
        if printed < fit.history["n_steps"] - 1:
            show(fit.history["n_steps"] - 1, fit.history["loss"][-1])


def _print(line: str) -> None:
    print(line, flush=True)


def _line(row: Sequence[_Cell], texts: Sequence[str]) -> str:
    padded = [text.rjust(max(cell.width, len(cell.head))) for cell, text in zip(row, texts, strict=True)]
    return "  ".join(padded)


def _number(head: str, x: np.ndarray) -> _Cell:
    return _Cell(head, f"{x.item():.6g}", 25 if np.iscomplexobj(x) else 12)


def _read(x: Any) -> Any:
    """An array for NumPy, unless other processes have parts of it: JAX finds the range of such."""
    return np.asarray(x) if is_readable(x) else x


def _array(head: str, x: Any) -> _Cell:
    """A number, all entries of a short array, or the range of those of a long one."""
    if x.ndim == 0:
        return _number(head, x)
    width = 21 if np.iscomplexobj(x) else 10  # of one entry
    if x.size <= _FEW:
        text = " ".join(f"{entry:.4g}" for entry in x.ravel().tolist())
        return _Cell(head, f"[{text}]", (width + 1) * x.size + 1)
    if np.iscomplexobj(x):
        head, x = f"|{head}|", abs(x)
    return _Cell(f"{head} {x.shape}", f"{x.min().item():.4g} … {x.max().item():.4g}", 23)


class PrintLoss(_Table):
    """Print the loss at every `every`-th step, and at the last one.

    **Arguments:**

    - `every`: print steps 0, `every`, 2 `every`, ... and the last.
    - `logger`: a `logging.Logger`, whose `info` gets the lines instead of `print`.

    **Raises:** `TypeError` for arguments of another kind, `ValueError` for an `every` below 1.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> fit = OptaxOptimizer(lambda s: (s["x"] - 1) ** 2, optimizers.sgd(0.25), PrintLoss(every=2))
    >>> _ = fit.run({"x": Parameter("x", 0.0)}, max_steps=4)
    step          loss
       0             1
       2        0.0625
       3      0.015625
    """


class PrintParameters(_Table):
    """Print the loss and the free values at which it was taken, in the user's units, by name.

    Of arrays with more than four entries it prints the least and the largest, of complex ones by size.

    **Arguments:**

    - `every`: print steps 0, `every`, 2 `every`, ... and the last.
    - `logger`: a `logging.Logger`, whose `info` gets the lines instead of `print`.

    **Raises:** `TypeError` for arguments of another kind, `ValueError` for an `every` below 1.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> loss = lambda state: (state["x"] - 1) ** 2
    >>> fit = OptaxOptimizer(loss, optimizers.sgd(0.25), PrintParameters(every=2))
    >>> _ = fit.run({"x": Parameter("offset", 0.0)}, max_steps=4)
    step          loss        offset
       0             1             0
       2        0.0625          0.75
       3      0.015625         0.875
    """

    uses: tuple[str, ...] = ("params",)

    def cells(self, layout: Layout, last: dict[str, Any]) -> list[_Cell]:
        values = jax.tree.leaves(last["params"])
        return [_array(name, _read(x)) for name, x in zip(layout.names, values, strict=True)]


class PrintGradients(_Table):
    """Print the loss and its derivatives by the free values, in the user's units, by name.

    Those of Parameters whose entries depend on each other (`transforms.Simplex`) are by unconstrained
    value, and marked with a star. Of arrays with more than four entries it prints the least and the
    largest.

    **Arguments:**

    - `every`: print steps 0, `every`, 2 `every`, ... and the last.
    - `logger`: a `logging.Logger`, whose `info` gets the lines instead of `print`.

    **Raises:** `TypeError` for arguments of another kind, `ValueError` for an `every` below 1.

    >>> from fitopt import OptaxOptimizer, Parameter, optimizers
    >>> loss = lambda state: (state["x"] - 1) ** 2
    >>> fit = OptaxOptimizer(loss, optimizers.sgd(0.25), PrintGradients(every=2))
    >>> _ = fit.run({"x": Parameter("offset", 0.0)}, max_steps=4)
    step          loss    d/d offset
       0             1            -2
       2        0.0625          -0.5
       3      0.015625         -0.25
    """

    uses: tuple[str, ...] = ("params", "grads")

    def cells(self, layout: Layout, last: dict[str, Any]) -> list[_Cell]:
        grads, values = jax.tree.leaves(last["grads"]), jax.tree.leaves(last["params"])
        slopes = _slopes(layout.specs, values) if any(map(_is_moved, layout.specs)) else values
        cells = []
        for name, spec, grad, slope in zip(layout.names, layout.specs, grads, slopes, strict=True):
            grad, star = _read(grad), "" if spec.bijection.elementwise else "*"
            if _is_moved(spec):
                with np.errstate(all="ignore"):
                    grad = grad / _read(slope)
            cells.append(_array(f"d/d {name}{star}", grad))
        return cells


def _is_moved(spec: Spec) -> bool:
    """Whether a derivative by value is another number than that by unconstrained value."""
    plain = spec.scale is None and spec.transform is None and not spec.is_bounded
    return spec.bijection.elementwise and not plain


@functools.partial(jax.jit, static_argnums=0)
def _slopes(specs: tuple[Spec, ...], values: list[Array]) -> list[Array]:
    """How fast each entry of each value changes with its unconstrained value."""

    def slope(spec: Spec, value: Array) -> Array:
        position = spec.to_position(value)
        return jax.jvp(spec.bijection.forward, (position,), (jnp.ones_like(position),))[1]

    pairs = zip(specs, values, strict=True)
    return [slope(*pair) if _is_moved(pair[0]) else pair[1] for pair in pairs]
