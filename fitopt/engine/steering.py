"""What host callbacks have changed in the first process of a fit, as all others take it over."""

import io
import zlib
from typing import Any

from ..methods.method import Constants
from ..parameter.specification import is_readable
from ..state import Flat, PyTree
from ..storage import npz
from . import resume
from .agreement import Agreement
from .points import Point


def of_the_first(
    agreement: Agreement, who: str, point: Point, flat: Flat, rate: PyTree
) -> tuple[Flat, PyTree]:
    """The state and the learning rate that a callback has chosen in the first process.

    Arrays that lie in several processes have been made by all of them together, and stay as they are.

    **Raises:** `ValueError` where a callback has changed what is no array in some processes alone.
    """
    old = *point.values, *point.constants.fixed
    new = *flat.free, *flat.fixed
    kind = _described(flat)
    message = None
    if agreement.writes:
        changed = {}
        if flat.layout == point.layout:
            pairs = zip(new, old, strict=True)
            changed = {f"{i}": _sent(x) for i, (x, before) in enumerate(pairs) if x is not before}
        file = io.BytesIO()
        npz.write_to(file, {"kind": kind, "changed": changed, "rate": rate}, {})
        message = file.getvalue()
    items, _ = npz.read_from(io.BytesIO(agreement.first_says(message)))
    if items["kind"] != kind:
        raise ValueError(
            f"{who} has made another state in the first process than in this one; of arrays the first "
            "one's are taken, but what is no array must change in all processes alike"
        )
    if agreement.writes or flat.layout != point.layout:
        return flat, items["rate"]
    taken = [*old]
    for place, sent in items["changed"].items():
        taken[int(place)] = new[int(place)] if sent is None else sent
    count = len(flat.free)
    return flat._replace(free=taken[:count], fixed=taken[count:]), items["rate"]


def _sent(x: Any) -> Any:
    """What the others get; None where each has its own part."""
    return x if isinstance(x, float) or is_readable(x) else None


def _described(flat: Flat) -> int:
    """A checksum of what a state is besides its numbers."""
    described = resume.describe_state(flat.layout, Constants(flat.free, flat.fixed))
    return zlib.crc32(repr(described).encode())
