"""The two protocols by which callbacks take part in a fit.

A traced callback, a `Callback`, runs inside the compiled loop. A host callback is any Python function
with the signature

    callback(step, diff_state, static_state, fitting_data, aux_data, loss_value, grads)

that is called after a step; a `HostCallback` is one that has something to open and close.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, PyTree

from .history import History

if TYPE_CHECKING:
    from .engine.resume import ResumePoint


class StepInfo(NamedTuple):
    """One step, at the point where its loss was taken.

    `params` are the free values in the structure of the state, as plain arrays (None elsewhere);
    `grads` has the same structure and holds the gradients in coordinates. `learning_rate` is that of
    the step's update, where the optimizer's state holds one (a dict by pattern for parameter groups),
    else None. `loss` is NaN at the step that ends a fit because its loss or its update was not finite.
    """

    step: Int[Array, ""]
    loss: Float[Array, ""]
    aux: PyTree
    params: PyTree
    grads: PyTree
    learning_rate: PyTree = None


class Callback(eqx.Module):
    """A callback that runs inside the compiled loop, at nanoseconds a step; override what you need.

    A callback holds settings alone; all that changes during a fit is its carry. So one object serves
    any number of fits, also at once. What it does not use of `info` costs nothing.

    >>> class StopWhenSmall(Callback):
    ...     limit: float
    ...
    ...     def update(self, info, carry):
    ...         return carry, info.params["k"] < self.limit
    """

    every = 1  # without a type: subclasses may make it a field

    def init(self, info: StepInfo) -> PyTree:
        """The carry before the first step: a pytree of arrays.

        `info` has the shapes and dtypes of the steps to come; only its `params` have their values.
        """
        return None

    def update(self, info: StepInfo, carry: PyTree) -> tuple[PyTree, Bool[Array, ""] | bool]:
        """The carry after a step, and whether to stop after it."""
        return carry, False

    def record(self, info: StepInfo) -> dict[str, PyTree] | None:
        """What to write to the history, by name, at every `self.every`-th step; None for nothing."""
        return None

    def first_learning_rate(self, info: StepInfo) -> PyTree | None:
        """The learning rate of the first update, with the `info` of `init`; None to leave it."""
        return None

    def next_learning_rate(self, info: StepInfo, carry: PyTree) -> PyTree | None:
        """The learning rate from the next update on, after `update` has made `carry`; None to leave it.

        A number, or a dict by pattern for parameter groups. It needs an optimizer whose state holds its
        learning rate: one of `fitopt.optimizers`, or `optax.inject_hyperparams`.
        """
        return None

    def result(self, carry: PyTree, loss: Array) -> tuple[Bool[Array, ""], PyTree, Array] | None:
        """Another end than the last state, whose loss is `loss`: whether to return it, its free values
        and its loss.

        Called once at the end; `carry` has seen one more `update`, for the state after the last step.
        Of several callbacks the later ones are asked about what the earlier ones chose.
        """
        return None

    def finish(self, history: History, carry: PyTree) -> None:
        """Called on the host, once, after the last step; `carry` holds NumPy arrays."""

    def stop_reason(self) -> str:
        """What `stop_reason` says when this callback has stopped the fit."""
        return f"{type(self).__name__} asked to stop"


def own_methods(callbacks: Sequence[Callback], name: str) -> list[tuple[int, Callable]]:
    """The methods of that name which callbacks bring themselves, each with its callback's number."""
    return [
        (number, getattr(callback, name))
        for number, callback in enumerate(callbacks)
        if next(cls for cls in type(callback).__mro__ if name in vars(cls)) is not Callback
    ]


class Fit:
    """A running fit, as host callbacks see it."""

    def __init__(self, run: Any):
        self._run = run

    @property
    def max_steps(self) -> int:
        """The number of steps at which the fit ends at the latest."""
        return self._run.max_steps

    @property
    def history(self) -> History:
        """The history being built; after a resume it holds what was recorded before."""
        return self._run.history

    @property
    def learning_rate(self) -> PyTree:
        """The current learning rate; what is assigned counts from the next step on.

        With parameter groups a dict by pattern; one number sets all groups.

        **Raises:** `ValueError` where the optimizer's state holds none, or where a schedule sets it.
        """
        return self._run.learning_rate()

    @learning_rate.setter
    def learning_rate(self, rate: Any) -> None:
        self._run.set_learning_rate(rate)

    @property
    def parameters(self) -> PyTree:
        """The free Parameters where the fit stands, in the structure of the state; None elsewhere."""
        return self._run.point.layout.free_state(self._run.values)

    @property
    def last(self) -> dict[str, PyTree]:
        """Of the last step, what the `uses` of all host callbacks name; empty before the first one."""
        return self._run.last

    def record(self, name: str, value: PyTree, every: int = 1) -> None:
        """Append `value`, of the last step, to the history's series `name`, made at every `every`-th."""
        self._run.journal.record(name, value, every)

    def resume_point(self) -> "ResumePoint":
        """All that going on from the last good step takes, to be kept by `fitopt.checkpoint`."""
        return self._run.resume_point()

    def stop(self, reason: str) -> None:
        """End the fit when the current stretch is over; may be called from anywhere and at any time."""
        self._run.wish = reason


HostFunction = Callable[[int, PyTree, PyTree, History, Any, Any, PyTree], Any]


class HostCallback:
    """A callback in plain Python that opens something for each fit, and closes it.

    `open` is a context manager that yields the function to call; what it keeps in local variables
    belongs to one fit alone. Code after the `yield` runs when the fit has ended well; put what must
    always run under `finally`.

    - `every`: it is called after steps 0, every, 2 every, ...; with None whenever the loop comes back
        to Python anyhow, some times a second.
    - `uses`: which fields of the last step's `StepInfo` are needed: of `"aux"` and `"grads"` those that
        are not named are None for the function; `fit.last` has all that are.
    """

    every: int | None = 1
    uses: tuple[str, ...] = ("aux", "grads")

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[HostFunction]:
        raise TypeError(f"{type(self).__name__} does not say what to do: override open")
        yield

    def due(self, step: int) -> int | None:
        """The first step from `step` on after which it is called; None for no more.

        Override it for another rhythm than that of `every`, which must not be None then.
        """
        return None if self.every is None else -(-step // self.every) * self.every

    def stop_reason(self) -> str:
        """What `stop_reason` says when the function has returned True."""
        return f"{label(self)} asked to stop"


@contextlib.contextmanager
def open_host(callback: Any, fit: Fit) -> Iterator[HostFunction]:
    """The function to call for a host callback of either kind."""
    if isinstance(callback, HostCallback):
        with callback.open(fit) as function:
            yield function
    else:
        yield callback


def cadence(callback: Any) -> int | None:
    """After how many steps a host callback is due; None for whenever there is a visit anyhow."""
    return callback.every if isinstance(callback, HostCallback) else getattr(callback, "every", 1)


def due(callback: Any) -> Callable[[int], int | None]:
    """The function that tells when a host callback is due."""
    if isinstance(callback, HostCallback):
        return callback.due
    every = getattr(callback, "every", 1)
    return lambda step: -(-step // every) * every


def label(callback: Any) -> str:
    """What sentences call a host callback."""
    return getattr(callback, "__name__", type(callback).__name__)
