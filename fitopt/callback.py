"""The two protocols by which callbacks take part in a fit.

A traced callback, a `Callback`, runs inside the compiled loop. A host callback is any Python function
with the signature

    callback(step, diff_state, static_state, fitting_data, aux_data, loss_value, grads)

that is called after a step; a `HostCallback` is one that has something to open and close.
"""

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int

from .history import History, ResumePoint
from .state import PyTree


class Metric(NamedTuple):
    """A number that a callback has measured."""

    value: Float[Array, ""]
    is_new: Bool[Array, ""] | bool  # at this step


class StepInfo(NamedTuple):
    """One step, at the point where its loss was taken.

    `params` are the free values in the structure of the state, as plain arrays (None elsewhere);
    `grads` has the same structure and holds the gradients by unconstrained value. `learning_rate` is
    that of the step's update, where the optimizer's state holds one (a dict by pattern for parameter
    groups), else None. `loss` is NaN at the step that ends a fit because its loss or its update was not
    finite. `state` is what the loss got: all plain values, free and fixed. `metrics` are the numbers
    that callbacks before this one have measured, by name.
    """

    step: Int[Array, ""]
    loss: Float[Array, ""]
    aux: PyTree
    params: PyTree
    grads: PyTree
    learning_rate: PyTree = None
    state: PyTree = None
    metrics: Mapping[str, Metric] = {}  # never changed


class Callback(eqx.Module):
    """A callback that runs inside the compiled loop, at nanoseconds a step; override what you need.

    A callback holds settings alone; all that changes during a fit is its carry. So one object serves
    any number of fits, also at once. What it does not use of `info` costs nothing. JAX arrays in its
    fields are handed to the compiled loop, they are not part of the program.

    >>> class StopWhenSmall(Callback):
    ...     limit: float
    ...
    ...     def update(self, info, carry):
    ...         return carry, info.params["k"] < self.limit
    """

    every = 1  # without a type: subclasses may make it a field
    looks_for_convergence = False  # whether a fit that it has stopped counts as converged

    def init(self, info: StepInfo) -> PyTree:
        """The carry before the first step: a pytree of arrays.

        `info` has the shapes and dtypes of the steps to come; only its `params` have their values.
        """
        return None

    def update(self, info: StepInfo, carry: PyTree) -> tuple[PyTree, Bool[Array, ""] | bool]:
        """The carry after a step, and whether to stop after it."""
        return carry, False

    def measure(self, carry: PyTree) -> dict[str, Float[Array, ""]]:
        """Numbers that later callbacks may watch by name; new ones at every `self.every`-th step."""
        return {}

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

    def objective_changed(self, carry: PyTree) -> PyTree:
        """The carry after a host callback has changed what the loss depends on but the Parameters."""
        return carry

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


def own_methods(callbacks: Sequence[Callback], name: str) -> list[tuple[int, Callable[..., Any]]]:
    """The methods of that name which callbacks bring themselves, each with its callback's number."""
    return [
        (number, getattr(callback, name))
        for number, callback in enumerate(callbacks)
        if next(cls for cls in type(callback).__mro__ if name in vars(cls)) is not Callback
    ]


class Fit(abc.ABC):
    """A running fit, as host callbacks see it."""

    max_steps: int  # at which it ends at the latest
    history: History  # being built; after a resume it holds what was recorded before

    @property
    @abc.abstractmethod
    def learning_rate(self) -> PyTree:
        """The current learning rate; what is assigned counts from the next step on.

        With parameter groups a dict by pattern; one number sets all groups.

        **Raises:** `ValueError` where the optimizer's state holds none, or where a schedule sets it.
        """

    @learning_rate.setter
    @abc.abstractmethod
    def learning_rate(self, rate: Any) -> None: ...

    @property
    @abc.abstractmethod
    def processes(self) -> tuple[int, ...]:
        """Those that make this fit together, because its arrays lie in all of them; else one."""

    @property
    @abc.abstractmethod
    def writes(self) -> bool:
        """Whether this process is to print, write and draw: of several that share a fit the first."""

    @property
    @abc.abstractmethod
    def seconds(self) -> float:
        """Since the fit began: of several processes the first one's, at the end of the last chunk."""

    @property
    @abc.abstractmethod
    def parameters(self) -> PyTree:
        """The free Parameters where the fit stands, in the structure of the state; None elsewhere."""

    @property
    @abc.abstractmethod
    def last(self) -> dict[str, PyTree]:
        """Of the last step, what the `uses` of all host callbacks name; empty before the first one."""

    @abc.abstractmethod
    def meet(self) -> None:
        """Wait for the other processes that make this fit, if there are any."""

    @abc.abstractmethod
    def record(self, name: str, value: PyTree, every: int = 1) -> None:
        """Append `value`, of the last step, to the history's series `name`, made at every `every`-th."""

    @abc.abstractmethod
    def resume_point(self) -> ResumePoint:
        """All that going on from the last good step takes, besides the history."""

    @abc.abstractmethod
    def stop(self, reason: str) -> None:
        """End the fit when the current chunk is over; may be called from anywhere and at any time."""


class RunningFits(abc.ABC):
    """Many fits under way, as host callbacks see them."""

    total: int  # of this process

    @property
    @abc.abstractmethod
    def done(self) -> int:
        """How many have ended."""

    @property
    @abc.abstractmethod
    def best_loss(self) -> float:
        """The least final loss so far; NaN before the first one."""

    @abc.abstractmethod
    def save(self, directory: Path, may_replace: bool = False) -> None:
        """Write what has changed since the last time to a directory, from which `run_many` can go on.

        **Raises:** `FileExistsError` if other fits have written there, unless one may replace them.
        """

    @abc.abstractmethod
    def stop(self, reason: str) -> None:
        """End all fits where they are; may be called from anywhere and at any time."""


HostFunction = Callable[[int, PyTree, PyTree, History, Any, Any, PyTree], Any]


class HostCallback:
    """A callback in plain Python that opens something for each fit, and closes it.

    `open` is a context manager that yields the function to call; what it keeps in local variables
    belongs to one fit alone. Code after the `yield` runs when the fit has ended well; put what must
    always run under `finally`.

    - `every`: it is called after steps 0, every, 2 every, ...; with None after every chunk, some times
        a second.
    - `steers`: False for one that never changes the state nor the learning rate: it saves the processes
        of a fit that several make together a message at each call. There, too, `fit.writes` tells
        whether this process is to print and write.
    - `uses`: which fields of the last step's `StepInfo` are needed: of `"aux"` and `"grads"` those that
        are not named are None for the function; `fit.last` has all that are.
    """

    every: int | None = 1
    uses: tuple[str, ...] = ("aux", "grads")
    cuts_short = False  # whether a fit that it has stopped is to be resumed, as one whose time was up
    steers = True  # whether it may change the state or the learning rate

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[HostFunction]:
        raise TypeError(f"{type(self).__name__} does not say what to do: override open")
        yield

    @contextlib.contextmanager
    def open_many(self, fits: RunningFits) -> Iterator[Callable[[], None]]:
        """The same for many fits at once: the function is called some times a second.

        A callback that looks at single steps has none.
        """
        raise TypeError(
            f"callback {label(self)} looks at one fit after each of its steps, which run_many cannot "
            "offer; use traced callbacks (fitopt.Callback) there"
        )
        yield

    def due(self, step: int) -> int | None:
        """The first step from `step` on after which it is called; None for no more.

        Override it for another rhythm than that of `every`, which must not be None then.
        """
        return None if self.every is None else -(-step // self.every) * self.every

    def stop_reason(self) -> str:
        """What `stop_reason` says when the function has returned True."""
        return f"{label(self)} asked to stop"


class PlainFunction(HostCallback):
    """A plain Python function as a host callback; an object may have an `every` of its own."""

    def __init__(self, function: HostFunction):
        self.function = function
        self.every: int | None = getattr(function, "every", 1)
        self.__name__: str = label(function)

    @contextlib.contextmanager
    def open(self, fit: Fit) -> Iterator[HostFunction]:
        yield self.function


def label(callback: Any) -> str:
    """What sentences call a host callback."""
    return getattr(callback, "__name__", type(callback).__name__)
