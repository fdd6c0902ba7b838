"""Series on the disk, in files that grow with them."""

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..state import PyTree
from . import npz as archive

Entry = dict[str, Any]  # for JSON: what a file holds of a series


class _Written(NamedTuple):
    """How far a series has been written."""

    file: str
    fields: list[Any]  # the arrays in a record: dtype and shape
    records: int
    checksum: int  # CRC-32 of them


class SeriesFiles:
    """Writes series into a directory: a file for each, and in it record after record, as raw bytes.

    Only new records are touched, behind those that earlier entries count: whatever goes wrong, these
    stay valid. A new object trusts nothing that lies in the directory and writes all records, over the
    same ones if it goes on with a fit; so take a new one after a fault of the disk, too.

    >>> import tempfile
    >>> directory = Path(tempfile.mkdtemp())
    >>> entries = SeriesFiles(directory).write({"loss": np.array([4.0, 2.0, 1.0])})
    >>> entries["loss"]["records"]
    3
    >>> read(directory, entries)
    {'loss': array([4., 2., 1.])}
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._written: dict[str, _Written] = {}

    def write(self, series: Mapping[str, PyTree]) -> dict[str, Entry]:
        """Append what is new; returns, when it is on the disk, what `read` takes to find all of it.

        **Raises:** `OSError`; `TypeError` for arrays of Python objects.
        """
        if series:
            self.directory.mkdir(exist_ok=True)
        return {name: self._write(name, item) for name, item in series.items()}

    def _write(self, name: str, item: PyTree) -> Entry:
        arrays, packed = archive.pack(item)
        fields = [[x.dtype.str, list(x.shape[1:])] for x in arrays.values()]
        record, total = _record(fields), max(map(len, arrays.values()), default=0)
        before = self._written.get(name, _Written(str(len(self._written)), fields, 0, 0))
        path = self.directory / before.file
        path.touch()
        with path.open("r+b") as file:
            cut = file.seek(0, os.SEEK_END) < before.records * record.itemsize  # by somebody else
            if cut or before.fields != fields or total < before.records:
                before = before._replace(records=0, checksum=0)
            new = np.empty(total - before.records, record)
            for i, x in enumerate(arrays.values()):
                new[str(i)] = x[before.records :]
            data = new.view(np.uint8).data if new.nbytes else b""
            file.seek(before.records * record.itemsize)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        written = _Written(before.file, fields, total, zlib.crc32(data, before.checksum))
        self._written[name] = written
        return {**written._asdict(), "arrays": list(arrays), "packed": packed}


def read(directory: Path, entries: Mapping[str, Entry]) -> dict[str, PyTree]:
    """The series of these entries; what follows in the files is not looked at.

    **Raises:** `OSError`; `ValueError` where records are missing or have changed.
    """
    return {name: _read(directory / entry["file"], name, entry) for name, entry in entries.items()}


def _read(path: Path, name: str, entry: Entry) -> PyTree:
    record = _record(entry["fields"])
    size = entry["records"] * record.itemsize
    with path.open("rb") as file:
        data = file.read(size)
    if len(data) < size:
        raise ValueError(f"records of {name!r} are missing")
    if zlib.crc32(data) != entry["checksum"]:
        raise ValueError(f"records of {name!r} have changed")
    records = np.ndarray(entry["records"], record, data)
    arrays = {key: records[str(i)] for i, key in enumerate(entry["arrays"])}
    return archive.unpack(entry["packed"], arrays.__getitem__)


def _record(fields: list[Any]) -> np.dtype:
    return np.dtype([(str(i), dtype, tuple(shape)) for i, (dtype, shape) in enumerate(fields)])
