"""Numbers as people read them: as many digits as the error allows."""

import math
from decimal import Decimal

_MOST = 13  # digits between the first of a value and the last of its error
_PLAIN = range(-3, 6)  # exponents of ten that are written out
_LONG = 10  # likewise, where all digits before the point are known


def number(x: float, digits: int = 6) -> str:
    """A number with so many significant digits at most.

    >>> number(1234567.0), number(0.5), number(math.inf)
    ('1.23457e+06', '0.5', 'inf')
    """
    return f"{x:.{digits}g}"


def percent(ratio: float) -> str:
    """A ratio in percent, to two significant digits.

    >>> percent(0.01526), percent(1.204), percent(3e-9)
    ('1.5 %', '120 %', '3.0e-07 %')
    """
    return f"{_significant(100 * ratio, 2)} %"


def measured(value: float, error: float, digits: int = 2) -> tuple[str, str]:
    """A value and its standard error, which gets `digits` significant digits, to the same place.

    The two parts belong together; in columns of their own, their signs stand in one line.

    >>> " ".join(measured(2.53987, 0.03871))
    '2.540 ± 0.039'
    >>> " ".join(measured(5.50156e-4, 7.2669e-6, digits=3))
    '(5.5016 ± 0.0727)e-04'
    """
    _, last = _places(error, digits)
    if math.isfinite(value):
        first = _places(value, 1)[0] if value else last
        if first - last > _MOST:
            return number(value, _MOST), f"± {error:.{digits - 1}e}"
    rounded, spread = (_rounded(x, last) for x in (value, error))
    top = max(rounded.adjusted(), spread.adjusted())
    if top in _PLAIN or (last <= 0 < top < _LONG):
        return f"{rounded:f}", f"± {spread:f}"
    return f"({rounded.scaleb(-top):f}", f"± {spread.scaleb(-top):f})e{top:+03d}"


def span(low: float, high: float, digits: int = 3) -> str:
    """An interval, with so many digits of its length.

    >>> span(1.232246, 1.404712), span(12345.67, 12345.92), span(-math.inf, 0.25)
    ('1.232 to 1.405', '12345.670 to 12345.920', '-inf to 0.25')
    """
    if not 0 < high - low < math.inf:
        return f"{number(low)} to {number(high)}"
    first = max(_places(x, 1)[0] for x in (low, high) if x)
    _, last = _places(high - low, digits)
    if first in _PLAIN:
        return f"{_rounded(low, last):f} to {_rounded(high, last):f}"
    return f"{number(low, first - last + 1)} to {number(high, first - last + 1)}"


def _places(x: float, digits: int) -> tuple[int, int]:
    """The powers of ten of a number's first digit and of its last, rounded to some digits."""
    first = int(f"{x:.{digits - 1}e}".partition("e")[2])
    return first, first - digits + 1


def _rounded(x: float, last: int) -> Decimal:
    rounded = Decimal(x).quantize(Decimal(1).scaleb(last))
    return rounded or abs(rounded)  # -0 is 0


def _significant(x: float, digits: int) -> str:
    if not (math.isfinite(x) and x > 0):
        return number(x, digits)
    first, last = _places(x, digits)
    return f"{_rounded(x, last):f}" if first in _PLAIN else f"{x:.{digits - 1}e}"
