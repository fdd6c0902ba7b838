"""Fits in one `.npz` file, without pickle."""

import os
from typing import Any

import numpy as np

from ..parameter import Spec, with_value
from ..state import flatten
from ..storage import npz
from ..transforms.transform import Constant
from .states import States
from .table import Table

_SETTINGS = ("lower", "upper", "scale", "mask")


def save(
    path: str | os.PathLike[str],
    states: States,
    table: Table,
    records: dict[int, dict[str, Any]],
    every: dict[str, int],
) -> None:
    """Write what there is of fits, but for the data."""
    layout = states.layout
    constants = lambda spec: {name: getattr(spec, name) for name in _SETTINGS}
    described = [
        {name: x.array for name, x in constants(spec).items() if x is not None} for spec in layout.specs
    ]
    fits = {
        "names": list(layout.names),
        "settings": described,
        "starts": [np.asarray(x) for x in states.starts(slice(None))],
        "table": table._asdict(),
        "records": {str(number): record for number, record in records.items()},
    }
    npz.write(path, {"fits": fits}, every)


def load(
    path: str | os.PathLike[str], states: Any
) -> tuple[States, Table, dict[int, Any], dict[str, int]]:
    """What `save` has written; `states` are those of the fits, or None.

    **Raises:** `ValueError` if the file is another one, or of other states.
    """
    items, every = npz.read(path)
    if "fits" not in items:
        raise ValueError(f"{os.fspath(path)} holds no fits; a history is read by History.load")
    fits = items["fits"]
    table = Table(**fits["table"])
    names, order = fits["names"], range(len(fits["names"]))
    if states is None:
        made = {
            name: with_value(_spec(name, settings), start[0])
            for name, settings, start in zip(names, fits["settings"], fits["starts"], strict=True)
        }
        template = flatten(made)
        order = [names.index(name) for name in template.layout.names]
        found = States(template, len(table.final_loss), [fits["starts"][i] for i in order], {})
    else:
        found = States.of(states)
        given = list(found.layout.names), len(found)
        if given != (names, len(table.final_loss)):
            raise ValueError(
                f"{os.fspath(path)} holds {len(table.final_loss)} fits of {', '.join(names)}; "
                f"states are {given[1]} of {', '.join(given[0])}"
            )
    table = table._replace(values=[table.values[i] for i in order])
    records = {int(number): record for number, record in fits["records"].items()}
    return found, table, records, every


def _spec(name: str, settings: dict[str, np.ndarray]) -> Spec:
    constants = [Constant(settings[key]) if key in settings else None for key in _SETTINGS]
    return Spec(name, True, *constants, transform=None)
