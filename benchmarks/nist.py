"""The 27 nonlinear regression problems of NIST's Statistical Reference Datasets, with certified results.

The files in `data/nist` are NIST's own, unchanged (public domain; Rogers, Filliben, Gill, Guthrie,
Lagergren and Vangel, https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml). Each holds the data, two
starts, and estimates, standard errors and the residual sum of squares, certified to eleven digits.
They are meant for float64.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fitopt import Parameter

_DATA = Path(__file__).parent / "data" / "nist"
_FIRST_ROW = 60  # in all files the data begin at the same line


class Problem(NamedTuple):
    """One regression: y ≈ model(x, b1, b2, ...), and what NIST certifies of it."""

    name: str
    model: Callable[..., Any]
    x: Float[np.ndarray, "*predictors n"]
    y: Float[np.ndarray, "n"]
    starts: Float[np.ndarray, "2 p"]  # the first is far from the solution, the second close to it
    values: Float[np.ndarray, "p"]
    standard_errors: Float[np.ndarray, "p"]
    sum_of_squares: float
    difficulty: str  # lower, average or higher

    @property
    def names(self) -> list[str]:
        """Of the parameters: b1, b2, ..."""
        return [f"b{i}" for i in range(1, self.values.size + 1)]

    @property
    def degrees_of_freedom(self) -> int:
        """Counted, as the file of Rat43 misprints it: 9, where its residual deviation stands for 11."""
        return self.y.size - self.values.size

    def state(self, values: Float[np.ndarray, "p"]) -> dict[str, Any]:
        """What fitopt fits: the parameters with these values, and the data."""
        named = zip(self.names, values, strict=True)
        return {**{name: Parameter(name, value) for name, value in named}, "x": self.x, "y": self.y}

    def residuals(self, state: Mapping[str, Any]) -> Float[Array, "n"]:
        """model - data."""
        return self.model(state["x"], *(state[name] for name in self.names)) - state["y"]


@cache
def load(name: str) -> Problem:
    """Read one problem.

    >>> load("Misra1a").values
    array([2.38942129e+02, 5.50156432e-04])
    """
    text = (_DATA / f"{name}.dat").read_text()
    table = np.array([line.split() for line in re.findall(r"^ *b\d+ *=(.*)", text, re.M)], float)
    y, *x = np.loadtxt(text.splitlines()[_FIRST_ROW:], unpack=True)
    return Problem(
        name=name,
        model=MODELS[name],
        x=np.array(x) if len(x) > 1 else x[0],
        y=np.log(y) if name in _LOGARITHM else y,
        starts=table[:, :2].T,
        values=table[:, 2],
        standard_errors=table[:, 3],
        sum_of_squares=float(_find(r"^Residual Sum of Squares:\s*(\S+)", text)),
        difficulty=_find(r"(\w+) Level of Difficulty", text).lower(),
    )


def problems() -> list[Problem]:
    """All of them, the easier first."""
    return [load(name) for name in MODELS]


def in_numpy(model: Callable[..., Any]) -> Callable[..., Any]:
    """The same model computed by NumPy, for those who fit without JAX.

    >>> in_numpy(saturation)(np.array([0.0, np.inf]), 2.0, 1.0)
    array([0., 2.])
    """
    return FunctionType(model.__code__, {**model.__globals__, "jnp": np})


def _find(pattern: str, text: str) -> str:
    if (match := re.search(pattern, text, re.M)) is None:
        raise ValueError(f"the file of a NIST problem holds a line like {pattern!r}; this one does not")
    return match[1]


def saturation(x, b1, b2):
    return b1 * (1 - jnp.exp(-b2 * x))


def misra1b(x, b1, b2):
    return b1 * (1 - (1 + b2 * x / 2) ** -2)


def misra1c(x, b1, b2):
    return b1 * (1 - (1 + 2 * b2 * x) ** -0.5)


def misra1d(x, b1, b2):
    return b1 * b2 * x / (1 + b2 * x)


def chwirut(x, b1, b2, b3):
    return jnp.exp(-b1 * x) / (b2 + b3 * x)


def lanczos(x, b1, b2, b3, b4, b5, b6):
    return b1 * jnp.exp(-b2 * x) + b3 * jnp.exp(-b4 * x) + b5 * jnp.exp(-b6 * x)


def gauss(x, b1, b2, b3, b4, b5, b6, b7, b8):
    peaks = b3 * jnp.exp(-(((x - b4) / b5) ** 2)) + b6 * jnp.exp(-(((x - b7) / b8) ** 2))
    return b1 * jnp.exp(-b2 * x) + peaks


def dan_wood(x, b1, b2):
    return b1 * x**b2


def kirby2(x, b1, b2, b3, b4, b5):
    return (b1 + x * (b2 + x * b3)) / (1 + x * (b4 + x * b5))


def cubics(x, b1, b2, b3, b4, b5, b6, b7):
    return (b1 + x * (b2 + x * (b3 + x * b4))) / (1 + x * (b5 + x * (b6 + x * b7)))


def nelson(x, b1, b2, b3):
    time, temperature = x
    return b1 - b2 * time * jnp.exp(-b3 * temperature)


def mgh17(x, b1, b2, b3, b4, b5):
    return b1 + b2 * jnp.exp(-x * b4) + b3 * jnp.exp(-x * b5)


def roszman1(x, b1, b2, b3, b4):
    return b1 - b2 * x - jnp.arctan(b3 / (x - b4)) / jnp.pi


def enso(x, b1, b2, b3, b4, b5, b6, b7, b8, b9):
    def cycle(period, cosine, sine):
        angle = 2 * jnp.pi * x / period
        return cosine * jnp.cos(angle) + sine * jnp.sin(angle)

    return b1 + cycle(12, b2, b3) + cycle(b4, b5, b6) + cycle(b7, b8, b9)


def mgh09(x, b1, b2, b3, b4):
    return b1 * (x**2 + x * b2) / (x**2 + x * b3 + b4)


def mgh10(x, b1, b2, b3):
    return b1 * jnp.exp(b2 / (x + b3))


def rat42(x, b1, b2, b3):
    return b1 / (1 + jnp.exp(b2 - b3 * x))


def rat43(x, b1, b2, b3, b4):
    return b1 / (1 + jnp.exp(b2 - b3 * x)) ** (1 / b4)


def eckerle4(x, b1, b2, b3):
    return b1 / b2 * jnp.exp(-0.5 * ((x - b3) / b2) ** 2)


def bennett5(x, b1, b2, b3):
    return b1 * (b2 + x) ** (-1 / b3)


MODELS = {
    "Misra1a": saturation,
    "Misra1b": misra1b,
    "Chwirut1": chwirut,
    "Chwirut2": chwirut,
    "DanWood": dan_wood,
    "Gauss1": gauss,
    "Gauss2": gauss,
    "Lanczos3": lanczos,
    # average
    "Misra1c": misra1c,
    "Misra1d": misra1d,
    "Gauss3": gauss,
    "Kirby2": kirby2,
    "Hahn1": cubics,
    "Nelson": nelson,
    "MGH17": mgh17,
    "Lanczos1": lanczos,
    "Lanczos2": lanczos,
    "Roszman1": roszman1,
    "ENSO": enso,
    # higher
    "MGH09": mgh09,
    "MGH10": mgh10,
    "BoxBOD": saturation,
    "Thurber": cubics,
    "Rat42": rat42,
    "Rat43": rat43,
    "Eckerle4": eckerle4,
    "Bennett5": bennett5,
}
_LOGARITHM = {"Nelson"}  # of y, which the model predicts
