"""Files that are replaced as a whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the place of `path` when all of it is on the disk.

    Until then, and if something goes wrong, `path` stays as it is. A symbolic link is followed.
    """
    path = os.path.realpath(path)
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name[:200]}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
