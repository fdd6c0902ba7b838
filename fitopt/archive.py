"""A history in one `.npz` file, without pickle.

The file holds each array under the path that it has in the history, so that `numpy.load` reads it too,
and a member `_fitopt.json` with everything else: structure, plain values, and when series were recorded.
"""

import collections
import contextlib
import io
import json
import operator
import os
import sys
import zipfile
import zlib
from typing import Any

import jax
import numpy as np

from .files import replacing

_VERSION = 1
_MEMBER = "_fitopt.json"
_PLAIN = (bool, int, float, str, type(None))


def write(path: str | os.PathLike[str], items: dict[str, Any], every: dict[str, int]) -> None:
    """Write a history's items; the file is replaced when all of it is there."""
    arrays: dict[str, np.ndarray] = {}
    structure = {
        "version": _VERSION,
        "every": every,
        "items": _Packer(arrays).pack(items, ()),
    }
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(_MEMBER, json.dumps(structure))
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


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
        array = np.asarray(x)
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
    damaged = (zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, IndexError)
    try:
        with zipfile.ZipFile(path) as archive:
            structure = json.loads(archive.read(_MEMBER))
            if structure["version"] > _VERSION:
                raise ValueError("a newer release of fitopt has written it")
            return _unpack(structure["items"], archive), dict(structure["every"])
    except (*damaged, NotImplementedError, RecursionError, EOFError) as error:
        raise ValueError(f"{os.fspath(path)} is not a history, or damaged: {error}") from error


def _unpack(node: Any, archive: zipfile.ZipFile) -> Any:
    if not isinstance(node, dict):
        return node
    children = [_unpack(child, archive) for child in node.get("children", ())]
    match node:
        case {"array": name}:
            # All of it at once: only then is the checksum looked at.
            member = io.BytesIO(archive.read(f"{name}.npy"))
            array = np.lib.format.read_array(member, allow_pickle=False)
            return array.view(np.dtype(node["dtype"])) if "dtype" in node else array
        case {"scalar": array}:
            return _unpack(array, archive)[()]
        case {"complex": [real, imaginary]}:
            return complex(real, imaginary)
        case {"dict": keys}:
            return dict(zip(keys, children, strict=True))
        case {"list": items}:
            return [_unpack(item, archive) for item in items]
        case {"tuple": items}:
            return tuple(_unpack(item, archive) for item in items)
        case {"namedtuple": where, "fields": fields}:
            return _namedtuple(*where, tuple(fields))(*children)
    raise ValueError(f"unknown entry {node!r}")


def _namedtuple(module: str, name: str, fields: tuple[str, ...]) -> Any:
    """The class of that name where it is at hand, else another of the same form."""
    with contextlib.suppress(AttributeError, KeyError):
        cls = operator.attrgetter(name)(sys.modules[module])
        if isinstance(cls, type) and issubclass(cls, tuple) and getattr(cls, "_fields", None) == fields:
            return cls
    return collections.namedtuple(name.rpartition(".")[2], fields)
