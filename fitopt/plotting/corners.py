"""`plot_corner`: samples of several numbers, each by itself and with each other."""

import warnings
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float

from ..uncertainty import Samples, Uncertainty

if TYPE_CHECKING:
    from arviz import InferenceData
    from matplotlib.figure import Figure

_DRAWS = 20_000  # of a normal approximation
_LEVELS = (0.3935, 0.8647)  # one and two standard deviations of a normal distribution of two numbers


def plot_corner(
    samples: "Uncertainty | Samples | InferenceData",
    names: "list[str] | None" = None,
    *,
    figure: "Figure | None" = None,
    color: str = "#0072b2",
) -> "Figure":
    """Draw how likely values are, of each number and of each pair, with the package corner.

    **Arguments:**

    - `samples`: an `Uncertainty`, for its normal approximation; what `uncertainty.sample` has drawn; or
        an ArviZ `InferenceData`, such as `fitopt.to_inference_data` makes, for its posterior.
    - `names`: of Parameters, or what is derived, in the order to draw them; all by default.
    - `figure`: a figure that `plot_corner` has drawn before: to draw over it, in another `color`.

    Contours hold 39 % and 86 % of the samples: one and two standard deviations, if these are normal.
    Numbers that are the same in all samples, as they lie on a bound, are left out.

    **Returns:** the figure.

    **Raises:** `ImportError` without corner, `KeyError` for names that are not there, `ValueError` if
    nothing varies.

    >>> import jax.numpy as jnp
    >>> from fitopt import LeastSquares, Parameter
    >>> x, y = jnp.arange(4.0), jnp.array([0.1, 0.9, 2.1, 2.9])
    >>> opt = LeastSquares(lambda state: state["slope"] * x + state["offset"] - y)
    >>> fitted, _ = opt.run({"slope": Parameter("slope", 1.0), "offset": Parameter("offset", 0.0)})
    >>> figure = plot_corner(opt.uncertainty(fitted))
    >>> len(figure.axes)
    4
    """
    try:
        import corner
    except ImportError as error:
        raise ImportError('plot_corner needs corner: pip install "fitopt[bayes]"') from error
    if isinstance(samples, Uncertainty):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of what lies on a bound, and is left out
            samples = samples.sample(jax.random.key(0), _DRAWS)
    columns = _columns(samples, names)
    style: dict[str, Any] = {"levels": _LEVELS, "color": color, "fig": figure, "bins": 40}
    return corner.corner(
        np.stack([*columns.values()], axis=1),
        labels=[*columns],
        plot_datapoints=False,
        hist_kwargs={"density": True},
        smooth=1.0,
        **style,
    )


def _columns(samples: Any, names: list[str] | None) -> dict[str, Float[np.ndarray, " draws"]]:
    """A column for each number."""
    if isinstance(samples, Samples):
        arrays = {name: samples.values(name) for name in samples.names}
    else:
        posterior = samples.posterior
        arrays = {
            str(name): np.asarray(one).reshape(-1, *one.shape[2:]) for name, one in posterior.items()
        }
    unknown = [name for name in names or () if name not in arrays]
    if unknown:
        raise KeyError(f"there are no samples of {unknown[0]!r}; there are {', '.join(arrays)}")
    columns = {}
    for name in names or arrays:
        for index in np.ndindex(arrays[name].shape[1:]):
            label = f"{name}[{','.join(map(str, index))}]" if index else name
            column = arrays[name][:, *index]
            if np.ptp(column) > 0:
                columns[label] = column
    if not columns:
        raise ValueError("there is nothing to draw: no number differs between the samples")
    return columns
