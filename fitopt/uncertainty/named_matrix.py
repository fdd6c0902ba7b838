"""`NamedMatrix`: covariances and correlations by name."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .messages import listed

if TYPE_CHECKING:
    from pandas import DataFrame


class NamedMatrix(np.ndarray):
    """A NumPy array with a row and a column for each name: `matrix["a", "k"]` is a number.

    What is computed of it is a plain array again.

    >>> matrix = NamedMatrix.of(np.array([[1.0, -0.5], [-0.5, 1.0]]), ("a", "k"))
    >>> matrix["a", "k"]
    -0.5
    >>> matrix["k"]
    array([-0.5,  1. ])
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, matrix: np.ndarray, names: tuple[str, ...]) -> "NamedMatrix":
        """A matrix with these names."""
        named = np.asarray(matrix).view(cls)
        named.names = names
        return named

    def __array_finalize__(self, other: Any) -> None:
        self.names = getattr(other, "names", ())

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)

    def __getitem__(self, index: Any) -> Any:
        keys = index if isinstance(index, tuple) else (index,)
        if not any(isinstance(key, str) for key in keys):
            return np.asarray(self)[index]
        rows = tuple(self._row(key) if isinstance(key, str) else key for key in keys)
        found = np.asarray(self)[rows]
        return found if np.ndim(found) else float(found)

    def _row(self, name: str) -> int:
        if name not in self.names:
            raise KeyError(f"no element {name!r}; there are {listed(self.names, most=50)}")
        return self.names.index(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return NamedMatrix.of, (np.asarray(self), self.names)

    def to_dataframe(self) -> "DataFrame":
        """The matrix as a pandas DataFrame, with names for rows and columns."""
        from pandas import DataFrame

        return DataFrame(np.asarray(self), index=self.names, columns=self.names)
