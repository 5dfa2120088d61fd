"""Files that are whole at any moment: written to a temporary name, synced, and renamed."""

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
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` when the block ends well, and vanishes when it does not.

    The bytes go to a temporary file beside `path`, reach the disk (fsync), and are then renamed. A reader sees the old
    file or the new one, never a part. What a killed process left of an earlier attempt is removed first. A path that
    is no regular file, and one of an open file (/dev/stdout), is written straight.
    """
    if (descriptor := descriptor_of(path)) is not None:
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            yield stream
        return
    mode = None
    if os.path.exists(path):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{os.fspath(path)} is a directory")
        if not stat.S_ISREG(mode):
            with open(path, "wb") as stream:
                yield stream
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
            os.replace(temporary, target)  # before the stream closes: without its lock the file would look abandoned
    except BaseException:  # Ctrl-C too
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(directory)


def descriptor_of(path: str | os.PathLike) -> int | None:
    """The number of the open file that /dev/stdout, /dev/fd/1 or a link to them stands for; None for other paths."""
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
    """As many characters of the name as leave room for what is added to them: names end at 255 bytes."""
    return os.fsencode(name)[:200].decode(sys.getfilesystemencoding(), "ignore")


def _open_temporary(directory: str, name: str) -> tuple[BinaryIO, str]:
    """A new file to become `name`, locked (flock) as long as it is open, and its path."""
    while True:
        temporary = os.path.join(directory, f".{_stem(name)}.{secrets.token_hex(4)}.tmp")
        stream = open(temporary, "xb")  # noqa: SIM115
        with suppress(OSError):  # a file system without locks: then nobody can take the file for abandoned either
            fcntl.flock(stream, fcntl.LOCK_EX)
        if os.path.exists(temporary):  # or another process has taken it for abandoned, before it was locked
            return stream, temporary
        stream.close()


def _remove_abandoned(directory: str, name: str) -> None:
    """Removes what writers of `name` that were killed have left: temporary files that no living process has locked."""
    ours = re.compile(rf"\.{re.escape(_stem(name))}\.[0-9a-f]{{8}}\.tmp")
    left = []
    with suppress(OSError), os.scandir(directory) as entries:
        left = [entry.path for entry in entries if ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)]
    for path in left:
        with suppress(OSError), open(path, "r+b") as stream:  # locked by its writer, or gone, or not ours to remove
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)


def sync(path: str | os.PathLike) -> None:
    """Waits until a file, or a directory's list of names, has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
