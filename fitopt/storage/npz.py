"""A history in one `.npz` file, without pickle.

The file holds each array under the path that it has in the history, so that `numpy.load` reads it too,
and a member `_fitopt.json` with everything else: structure, plain values, and when series were recorded.
"""

import collections
import contextlib
import functools
import io
import json
import operator
import os
import sys
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import jax
import numpy as np

from ..parameter.specification import is_readable
from .atomic_files import replacing

_VERSION = 1
_MEMBER = "_fitopt.json"
_PLAIN = (bool, int, float, str, type(None))


def write(path: str | os.PathLike[str], items: dict[str, Any], every: dict[str, int]) -> None:
    """Write a history's items; the file is replaced when all of it is there."""
    with replacing(path) as file:
        write_to(file, items, every)


def write_to(file: BinaryIO, items: dict[str, Any], every: dict[str, int]) -> None:
    """Write a history's items to an open file."""
    arrays, packed = pack(items)
    structure = {"version": _VERSION, "every": every, "items": packed}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(_MEMBER, json.dumps(structure))
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def pack(items: dict[str, Any]) -> tuple[dict[str, np.ndarray], Any]:
    """The arrays in a pytree, by name, and all else for JSON; `unpack` puts them together.

    **Raises:** `TypeError` for what is neither an array, a number nor a string.

    >>> pack({"loss": np.zeros(2), "n_steps": 2})[0]
    {'loss': array([0., 0.])}
    """
    arrays: dict[str, np.ndarray] = {}
    return arrays, _Packer(arrays).pack(items, ())


class _Packer:
    """Describes a pytree in JSON, and collects its arrays."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    def pack(self, x: Any, path: tuple[str, ...]) -> Any:
        if type(x) in _PLAIN:
            return x
        if isinstance(x, complex):
            return {"complex": [x.real, x.imag]}
        if isinstance(x, np.ndarray | np.generic | jax.Array):
            return self.pack_array(x, path)
        if isinstance(x, dict):
            keys = [key if type(key) in _PLAIN else str(key) for key in x]
            children = [self.pack(child, (*path, str(key))) for key, child in x.items()]
            return {"dict": keys, "children": children}
        if isinstance(x, list | tuple):
            children = [self.pack(child, (*path, str(i))) for i, child in enumerate(x)]
            fields = getattr(x, "_fields", None)
            if fields is not None:
                where = [type(x).__module__, type(x).__qualname__]
                return {"namedtuple": where, "fields": fields, "children": children}
            return {"list" if isinstance(x, list) else "tuple": children}
        return self.pack_node(x, path)

    def pack_array(self, x: Any, path: tuple[str, ...]) -> Any:
        array: Any = np.asarray(x) if is_readable(x) else x  # of which orbax writes the parts
        if array.dtype.hasobject:
            raise TypeError(f"history: {'/'.join(path)} holds Python objects, which cannot be saved")
        name = "/".join(path)
        while name in self.arrays:
            name += "_"
        node = {"array": name}
        if array.dtype.kind == "V" and array.dtype.names is None:
            # bfloat16 and its kin are unknown to NumPy's format: their bytes are saved.
            node["dtype"] = array.dtype.name
            array = array.view(f"u{array.dtype.itemsize}")
        self.arrays[name] = array
        return {"scalar": node} if isinstance(x, np.generic) else node

    def pack_node(self, x: Any, path: tuple[str, ...]) -> Any:
        """Any other node that JAX knows, as a dict of its children."""
        children, _ = jax.tree.flatten_with_path(x, is_leaf=lambda child: child is not x)
        if any(child is x for _, child in children):
            raise TypeError(
                f"history: {'/'.join(path)} is a {type(x).__name__}, which cannot be saved; arrays, "
                "numbers, strings and pytrees of them can"
            )
        named = {jax.tree_util.keystr(keys, simple=True): child for keys, child in children}
        return self.pack(named, path)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, int]]:
    """The items of a history, and after how many steps each series was recorded.

    **Raises:** `ValueError` if the file is damaged, or not one of these.
    """
    with open(path, "rb") as file:
        try:
            return read_from(file)
        except Exception as error:  # damage raises all kinds
            name = os.fspath(path)
            raise ValueError(f"{name} is not a history, or damaged: {error}") from error


def read_from(file: BinaryIO) -> tuple[dict[str, Any], dict[str, int]]:
    """The same from an open file; damage raises all kinds."""
    with zipfile.ZipFile(file) as archive:
        structure = json.loads(archive.read(_MEMBER))
        if structure["version"] > _VERSION:
            raise ValueError("a newer release of fitopt has written it")
        items = unpack(structure["items"], functools.partial(_read_array, archive))
        return dict(items), dict(structure["every"])


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    # All of it at once: only then is the checksum looked at.
    member = io.BytesIO(archive.read(f"{name}.npy"))
    return np.lib.format.read_array(member, allow_pickle=False)


def unpack(node: Any, get: Callable[[str], np.ndarray]) -> Any:
    """What `pack` has taken apart; `get` gives the arrays by their names."""
    if not isinstance(node, dict):
        return node
    children = [unpack(child, get) for child in node.get("children", ())]
    match node:
        case {"array": name}:
            array = get(name)
            return array.view(np.dtype(node["dtype"])) if "dtype" in node else array
        case {"scalar": array}:
            return unpack(array, get)[()]
        case {"complex": [real, imaginary]}:
            return complex(real, imaginary)
        case {"dict": keys}:
            return dict(zip(keys, children, strict=True))
        case {"list": items}:
            return [unpack(item, get) for item in items]
        case {"tuple": items}:
            return tuple(unpack(item, get) for item in items)
        case {"namedtuple": [module, name], "fields": fields}:
            return _namedtuple(module, name, tuple(fields))(*children)
    raise ValueError(f"unknown entry {node!r}")


def _namedtuple(module: str, name: str, fields: tuple[str, ...]) -> Any:
    """The class of that name where it is at hand, else another of the same form."""
    with contextlib.suppress(AttributeError, KeyError):
        cls = operator.attrgetter(name)(sys.modules[module])
        if isinstance(cls, type) and issubclass(cls, tuple) and getattr(cls, "_fields", None) == fields:
            return cls
    return collections.namedtuple(name.rpartition(".")[2], fields)
