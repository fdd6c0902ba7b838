"""The command `fitopt demo`: predator and prey, from a table of pelts to fitted rates and a picture.

It is written to be read as an example. The data are the pelts of snowshoe hare and Canadian lynx that
the Hudson's Bay Company bought from 1900 to 1920; the model is that of Lotka and Volterra.
"""

import argparse
import functools
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

import fitopt
from fitopt.callbacks import EarlyStopping, KeepBest, ProgressBar

START = {
    "alpha": 0.8,  # births per hare and year
    "beta": 0.04,  # deaths per hare, year and thousand lynx
    "gamma": 0.5,  # deaths per lynx and year
    "delta": 0.01,  # births per lynx, year and thousand hares
    "hare0": 20.0,  # in 1900, thousands
    "lynx0": 4.0,
    "sigma_hare": 0.5,  # standard deviations of the logarithm of the data
    "sigma_lynx": 0.5,
}


class Pelts(NamedTuple):
    """The data: years, and for each the pelts of hare and lynx in thousands."""

    years: Float[np.ndarray, " n"]
    counts: Float[np.ndarray, "n 2"]


def load_pelts() -> Pelts:
    """The table that comes with the package.

    >>> years, counts = load_pelts()
    >>> print(years[0], counts[0])
    1900.0 [30.  4.]
    """
    with resources.files("fitopt").joinpath("data/lynx_hare.csv").open() as file:
        table = np.loadtxt(file, delimiter=",", skiprows=2)
    return Pelts(table[:, 0], table[:, 1:])


def simulate(
    parameters: Mapping[str, Any], times: Float[ArrayLike, " n"], substeps: int = 10
) -> Float[Array, "n 2"]:
    """Hares and lynx at the given times, in thousands; the first row is the start.

    The classical Runge-Kutta method of fourth order, with `substeps` steps from each time to the next.
    """
    alpha, beta, gamma, delta, *start = (
        parameters[name] for name in ("alpha", "beta", "gamma", "delta", "hare0", "lynx0")
    )

    def rate(y: Array) -> Array:
        hare, lynx = y
        return jnp.stack([(alpha - beta * lynx) * hare, (delta * hare - gamma) * lynx])

    def substep(y: Array, dt: Array) -> Array:
        k1 = rate(y)
        k2 = rate(y + dt / 2 * k1)
        k3 = rate(y + dt / 2 * k2)
        k4 = rate(y + dt * k3)
        return y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def interval(y: Array, dt: Array) -> tuple[Array, Array]:
        y, _ = lax.scan(lambda y, _: (substep(y, dt / substeps), None), y, length=substeps)
        return y, y

    y0 = jnp.stack(start)
    _, later = lax.scan(interval, y0, jnp.diff(jnp.asarray(times)))
    return jnp.concatenate([y0[None], later])


def negative_log_likelihood(parameters: Mapping[str, Any], pelts: Pelts) -> Float[Array, ""]:
    """Minus the logarithm of the data's likelihood under log-normal errors, without constants."""
    sigma = jnp.stack([parameters["sigma_hare"], parameters["sigma_lynx"]])
    residuals = jnp.log(pelts.counts) - jnp.log(simulate(parameters, pelts.years))
    return jnp.sum((residuals / sigma) ** 2) / 2 + len(pelts.years) * jnp.sum(jnp.log(sigma))


def make_optimizer() -> fitopt.OptaxOptimizer:
    """The loss, how to go downhill on it, and when to stop."""
    return fitopt.OptaxOptimizer(
        functools.partial(negative_log_likelihood, pelts=load_pelts()),
        optax.adam(0.05),
        callback=[
            EarlyStopping(patience=200, min_delta=1e-9),
            KeepBest(),
            ProgressBar(desc="fit"),
        ],
    )


def fit() -> tuple[dict[str, fitopt.Parameter], fitopt.History]:
    """Find the maximum likelihood in float64; returns the fitted parameters and the history."""
    with jax.enable_x64(True):
        return make_optimizer().run(make_state(), max_steps=5000)


def make_state() -> dict[str, fitopt.Parameter]:
    """Where the fit begins."""
    return {name: fitopt.Parameter(name, value, lower=0, scale=value) for name, value in START.items()}


def fit_many(n: int) -> fitopt.Fits:
    """The same from many starts, drawn round that of the fit, all at once."""
    with jax.enable_x64(True):
        return make_optimizer().run_many(fitopt.starts(make_state(), n), max_steps=5000)


def tell_starts(fits: fitopt.Fits) -> str:
    """How many of the starts have found the best minimum."""
    best, *others = fits.minima()
    found = f"{best.count} of {len(fits)} starts found the best minimum, a loss of {best.loss:.4f}"
    return f"{found}; the next one is at {others[0].loss:.4f}" if others else found


def report(fitted: Mapping[str, fitopt.Parameter], history: fitopt.History) -> fitopt.Report:
    """The fitted values with standard errors, from the Hessian of the loss, and how the fit went."""
    uncertainty = make_optimizer().uncertainty(fitted)
    n_data = load_pelts().counts.size
    return fitopt.report(fitted, history, uncertainty, n_data=n_data, digits=3)


def plot(
    fitted: Mapping[str, fitopt.Parameter], history: fitopt.History, path: str | os.PathLike[str]
) -> None:
    """Draw data, fitted curves and the history of the loss, and save the picture.

    **Raises:** `ModuleNotFoundError` without matplotlib.
    """
    from matplotlib.figure import Figure

    years, counts = load_pelts()
    times = np.linspace(years[0], years[-1], 401)
    with jax.enable_x64(True):
        curves = np.asarray(simulate(fitopt.values(fitted), times))
    excess = history["loss"] - history["best_loss"]

    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for i, (species, color) in enumerate([("hare", "#0072b2"), ("lynx", "#d55e00")]):
        points = {"color": color, "markersize": 6, "markeredgecolor": "white"}
        left.plot(times, curves[:, i], color=color, label=f"{species}, fit")
        left.plot(years, counts[:, i], "o", **points, label=f"{species}, data")
    left.set(xlabel="year", ylabel="pelts (thousands)", ylim=(0, None), xticks=range(1900, 1921, 5))
    left.legend(
        ncols=4,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        frameon=False,
        handlelength=1.3,
        columnspacing=1.5,
    )
    right.semilogy(np.where(excess > 0, excess, np.nan), color="#444444")
    right.set(xlabel="step", ylabel="loss above its minimum")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)


def plot_starts(fits: fitopt.Fits, path: str | os.PathLike[str]) -> None:
    """Draw the losses from all starts in order, and save the picture.

    **Raises:** `ModuleNotFoundError` without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    fitopt.plot_waterfall(fits, ax=figure.subplots())
    figure.savefig(path, dpi=160)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `fitopt`; returns its exit code."""
    parser = argparse.ArgumentParser("fitopt", description="Fit the parameters of JAX models to data.")
    parser.add_argument("--version", action="version", version=f"fitopt {fitopt.__version__}")
    about = "fit the Lotka-Volterra equations to the hare and lynx pelts of 1900-1920"
    demo = parser.add_subparsers(dest="command", metavar="command").add_parser(
        "demo", help=about, description=f"{about[0].upper()}{about[1:]}."
    )
    demo.add_argument("--no-plot", action="store_true", help="do not draw the picture")
    demo.add_argument(
        "--output",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where to save the picture; made if missing (default: the current directory)",
    )
    demo.add_argument(
        "--starts",
        type=int,
        default=1,
        metavar="N",
        help="fit from N starts, and draw lynx_hare_starts.png, their losses in order",
    )
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        demo.error(f"argument --output: cannot make the directory {arguments.output}: {error.strerror}")

    if arguments.starts < 1:
        demo.error(f"argument --starts: must be at least 1, got {arguments.starts}")
    if arguments.starts > 1:
        fits = fit_many(arguments.starts)
        print(fits, tell_starts(fits), sep="\n")
        name, draw = "lynx_hare_starts.png", lambda path: plot_starts(fits, path)
    else:
        fitted, history = fit()
        print(report(fitted, history))
        name, draw = "lynx_hare.png", lambda path: plot(fitted, history, path)
    if not arguments.no_plot:
        picture = arguments.output / name
        try:
            draw(picture)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("matplotlib"):
                raise
            saved = 'not saved, matplotlib is missing: pip install "fitopt[plot]"'
        except OSError as error:
            demo.error(f"cannot save {picture}: {error.strerror}")
        else:
            saved = str(picture)
        print(f"{'picture':<20}{saved}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
