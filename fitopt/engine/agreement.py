"""What the processes of one fit agree on: whatever depends on a clock, on a signal or on Python code.

Arrays that lie on the devices of several processes are computed with by all of them together: one that
makes other chunks than the rest waits for ever. So after each chunk every process tells what it would do
next, through the key-value store, and all of them draw the same conclusion.
"""

import collections
import contextlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from ..methods.method import StopReason
from . import store

_SOME = 64  # messages are removed so many rounds at once
_counts: dict[tuple[int, ...], Iterator[int]] = collections.defaultdict(itertools.count)


class Agreement:
    """The agreement of a fit in one process, which need not ask anybody."""

    is_shared = False
    writes = True  # whether this process prints, writes and draws

    def __init__(self):
        self._began = time.perf_counter()

    @property
    def processes(self) -> tuple[int, ...]:
        """Those that make the fit together."""
        return (jax.process_index(),)

    @property
    def seconds(self) -> float:
        """Since the fit began; the same for all processes."""
        return time.perf_counter() - self._began

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Raise `ValueError` unless all processes make the same fit, as `facts` by name tell."""

    def next_chunk(self, stop: StopReason | None, limit: int) -> tuple[StopReason | None, int]:
        """Why to stop, if so, and how many steps the next chunk may have."""
        return stop, limit

    def meet(self) -> None:
        """Wait for all."""

    def first_says(self, message: bytes | None) -> bytes:
        """The message of the first process, which is the only one that has to bring it."""
        assert message is not None
        return message

    def leave(self, error: BaseException) -> None:
        """Tell the others that an exception has ended the fit in this process."""


class SharedAgreement(Agreement):
    """The agreement of several processes, which make one fit together.

    Requests to stop count wherever they come from; chunks are as short as the shortest that one of them
    wants. The first process has the clock, and is the one that tells, writes and draws.
    """

    is_shared = True

    def __init__(self, processes: Sequence[int]):
        super().__init__()
        if store.client() is None:
            raise RuntimeError(
                "arrays of several processes need jax.distributed.initialize(...) in each of them"
            )
        if jax.config.jax_enable_recoverability:  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(
                "a fit of arrays that lie in several processes needs jax_enable_recoverability=False: "
                "one that has died must end the others, which wait for it"
            )
        self._processes = tuple(processes)
        self._me = jax.process_index()
        self._number = next(_counts[self._processes])
        self._fits = f"fitopt/run/{'-'.join(map(str, self._processes))}"
        self._name = f"{self._fits}/{self._number}"
        self._round = 0
        self._seconds = 0.0
        self.writes = self._me == self._processes[0]

    @property
    def processes(self) -> tuple[int, ...]:
        return self._processes

    @property
    def seconds(self) -> float:
        return self._seconds

    def check_same(self, facts: Mapping[str, str]) -> None:
        told = self._gather("begin", dict(facts))
        if self.writes:  # here nobody reads any more what was told in the last fit
            store.remove(f"{self._fits}/{self._number - 1}")
        for process, theirs in zip(self._processes, told, strict=True):
            for name in {**told[0], **theirs}:
                here, there = told[0].get(name, "missing"), theirs.get(name, "missing")
                if here != there:
                    raise ValueError(
                        "all processes must make the same fit, with the same callbacks (the first one "
                        f"alone prints, writes and draws): {name} is {here} in process "
                        f"{self._processes[0]} and {there} in process {process}"
                    )

    def next_chunk(self, stop: StopReason | None, limit: int) -> tuple[StopReason | None, int]:
        told = self._gather("chunk", [stop, limit, super().seconds])
        self._seconds = told[0][2]
        limit = min(limit for _, limit, _ in told)
        for process, (found, *_) in zip(self._processes, told, strict=True):
            if found is not None:
                reason = StopReason(*found)
                if told[0][0] is None:
                    reason = reason._replace(sentence=f"{reason.sentence} in process {process}")
                return reason, limit
        return None, limit

    def meet(self) -> None:
        self._gather("meeting", None)

    def first_says(self, message: bytes | None) -> bytes:
        name = self._next_round("all")
        if self.writes:
            assert message is not None
            store.put(name, message)
            return message
        return self._wait_for(name)

    def leave(self, error: BaseException) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was faster
            said = f"process {self._me} has left the fit: {type(error).__name__}: {error}"
            store.put(f"{self._name}/left", said.encode())

    def _gather(self, what: str, message: Any) -> list[Any]:
        """The messages of all processes, in all of them."""
        name, first = self._next_round(str(self._me)), self._processes[0]
        place, mine = name.rpartition("/")[0], json.dumps([what, message]).encode()
        if self.writes:
            others = [self._wait_for(f"{place}/{process}") for process in self._processes[1:]]
            told = [json.loads(x) for x in (mine, *others)]
            store.put(f"{place}/all", json.dumps(told).encode())
            if self._round % _SOME == 0:
                store.remove(f"{self._name}/{self._round // _SOME - 2}")
        else:
            store.put(name, mine)
            told = json.loads(self._wait_for(f"{place}/all"))
        for process, (theirs, _) in zip(self._processes, told, strict=True):
            if theirs != told[0][0]:
                raise RuntimeError(
                    f"process {process} is at {theirs!r} of a fit where process {first} is at "
                    f"{told[0][0]!r}: host callbacks must be called after the same steps in all"
                )
        return [message for _, message in told]

    def _wait_for(self, name: str) -> bytes:
        return store.wait_for(name, self._look_for_leavers)

    def _look_for_leavers(self) -> None:
        if (said := store.get(f"{self._name}/left")) is not None:
            raise RuntimeError(said.decode())

    def _next_round(self, who: str) -> str:
        self._round += 1
        return f"{self._name}/{self._round // _SOME}/{self._round}/{who}"
