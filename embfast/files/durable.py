"""Atomic replacement of files: written under a temporary name, synced, and renamed."""

import fcntl
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

FilePath = str | os.PathLike[str]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file for writing that replaces `path` if the block succeeds, and is deleted if it raises.

    The bytes go to a temporary file beside `path`, which is synced to disk (fsync) and then renamed. A reader sees the
    old file or the new one, never a part. Temporary files of earlier writers that were killed are removed first. Paths
    of open files (/dev/stdout) and of other special files are written directly.
    """
    if (descriptor := descriptor_of(path)) is not None:
        with os.fdopen(os.dup(descriptor), "wb") as opened:
            yield opened
        return
    mode = None
    if os.path.exists(path):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{os.fspath(path)} is a directory")
        if not stat.S_ISREG(mode):
            with open(path, "wb") as opened:
                yield opened
            return
    target = os.path.realpath(path)
    directory, name = os.path.split(target)
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"{os.fspath(path)}: there is no directory {directory}")
    _remove_abandoned(directory, name)
    stream, temporary = _open_temporary(directory, name)
    try:
        with stream:
            yield stream
            stream.flush()
            if mode is not None:
                os.fchmod(stream.fileno(), stat.S_IMODE(mode))
            os.fsync(stream.fileno())
            os.replace(
                temporary, target
            )  # before the stream closes and releases its lock: an unlocked file looks abandoned
    except BaseException:  # Ctrl-C too
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(directory)


def descriptor_of(path: str | os.PathLike[str]) -> int | None:
    """The descriptor that /dev/stdout, /dev/fd/1 or a link to them names; None for other paths."""
    here = os.path.abspath(path)
    while os.path.exists(here):
        directory, name = os.path.split(here)
        directory = os.path.realpath(directory)
        if directory in ("/dev/fd", os.path.realpath("/proc/self/fd")) and name.isdecimal():
            return int(name)
        if not os.path.islink(here):
            return None
        here = os.path.join(directory, os.readlink(here))
    return None


def _stem(name: str) -> str:
    """The start of a name, short enough for a prefix and suffix: file names are limited to 255 bytes."""
    return os.fsencode(name)[:200].decode(sys.getfilesystemencoding(), "ignore")


def _open_temporary(directory: str, name: str) -> tuple[BinaryIO, str]:
    """A new temporary file for `name`, locked (flock) while open, and its path."""
    while True:
        temporary = os.path.join(directory, f".{_stem(name)}.{secrets.token_hex(4)}.tmp")
        stream = open(temporary, "xb")  # noqa: SIM115
        with suppress(OSError):  # a file system without locks: no other process can find the file abandoned either
            fcntl.flock(stream, fcntl.LOCK_EX)
        if os.path.exists(temporary):  # otherwise another process removed it as abandoned before it was locked
            return stream, temporary
        stream.close()


def _remove_abandoned(directory: str, name: str) -> None:
    """Removes temporary files of killed writers of `name`: those that no living process has locked."""
    ours = re.compile(rf"\.{re.escape(_stem(name))}\.[0-9a-f]{{8}}\.tmp")
    left = []
    with suppress(OSError), os.scandir(directory) as entries:
        left = [entry.path for entry in entries if ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)]
    for path in left:
        with suppress(OSError), open(path, "r+b") as stream:  # locked by its writer, gone, or not permitted
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file, or the entries of a directory, are on disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
