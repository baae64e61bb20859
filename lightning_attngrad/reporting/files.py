"""Files that are complete from the moment that they are there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import fsspec  # type: ignore[import-untyped]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, and never a part.

    The bytes go to a hidden file of the same folder and reach the disk before that file takes the name. A
    process that is killed while it writes leaves at most the hidden file ``.<name>.<process id>``, which
    nothing reads.

    Args:
        path: Where the file is to be; its folder is made where it is missing.
        content: The whole file.

    Raises:
        OSError: Where the file cannot be written. What lay under the name is then still there, and the
            hidden file is not.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "audit" / "epoch-3.json", b"{}")
        ...     [str(path.relative_to(folder)) for path in Path(folder).rglob("*.json")]
        ['audit/epoch-3.json']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{path.name}.{os.getpid()}"  # of the same file system, or it could not be renamed
    try:
        unfinished.write_bytes(content)
        # Without it a power cut could leave the new name on a file whose bytes never reached the disk.
        with unfinished.open("rb+") as stream:
            os.fsync(stream.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_to(address: str, content: bytes) -> None:
    """Write a whole file, to a path or to the address of an object store.

    Args:
        address: such as ``run/epoch=3.json`` or ``s3://bucket/epoch=3.json``.
        content: The whole file.

    Raises:
        OSError: Where the file cannot be written.
    """
    if "://" not in address:
        write_atomically(Path(address), content)
        return
    with fsspec.open(address, "wb") as stream:  # object stores show a file only when it is complete
        stream.write(content)


def remove_from(address: str) -> None:
    """Remove what `write_to` wrote, if it is there and can be removed."""
    if "://" not in address:
        with contextlib.suppress(OSError):
            Path(address).unlink(missing_ok=True)
