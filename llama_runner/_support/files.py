"""Files that a user names: checking names, opening, atomic writing, measuring.

Nothing can be assumed of a name: it may be impossible as a path or too long, or lead to a directory
or to a pipe without a writer.
"""

from __future__ import annotations

import errno
import os
import reprlib
import secrets
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Final, TypeVar

from llama_runner.errors import (
    FileWriteError,
    InvalidParameterError,
    ModelNotFoundError,
    NoDiskSpaceError,
    of_the_call,
    raised_by_handler,
)

__all__ = [
    "about_file",
    "at_home",
    "bytes_below",
    "is_directory",
    "is_file",
    "is_missing",
    "is_there",
    "open_regular",
    "path_text",
    "refuse_special",
    "size_of",
    "trouble_at",
    "user_path",
    "write_file",
]

_AnyOSError = TypeVar("_AnyOSError", bound=OSError)

_NOTHING_THERE: Final = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
_SPECIAL: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def path_text(given: object, what: str = "model") -> str:
    """Return the path or name that a user gave, as text.

    Raises:
        InvalidParameterError: It is neither a string nor path-like.
        ModelNotFoundError: It is empty; as a path, that would be the current directory.
    """
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(text, str):
        raise InvalidParameterError(
            f"{what}={reprlib.repr(given)}: must be a string or a path, not {type(given).__name__}",
            field=what,
        )
    if not text:
        raise ModelNotFoundError(f"{what}='': the name of a model is empty", field=what)
    return text


def user_path(given: object, what: str = "model") -> Path:
    """Return the path that a user gave; ``~`` is the home directory, as in a shell.

    Raises:
        As :func:`path_text`.
    """
    return at_home(path_text(given, what))


def at_home(path: str | os.PathLike[str]) -> Path:
    """Replace ``~`` in a path with the home directory, if there is such a user."""
    try:
        return Path(path).expanduser()
    except of_the_call(RuntimeError):
        return Path(path)


def is_file(path: Path) -> bool:
    """Return whether the path is a regular file."""
    return stat.S_ISREG(_mode(path.stat))


def is_directory(path: Path) -> bool:
    """Return whether the path is a directory."""
    return stat.S_ISDIR(_mode(path.stat))


def _mode(look: Callable[[], os.stat_result]) -> int:
    """Return the mode of a file, or 0 if there is none.

    pathlib's own is_file() and is_dir() raise for impossible names, and lose an exception that a
    signal handler raises meanwhile.
    """
    try:
        return look().st_mode
    except of_the_call(OSError, ValueError):
        return 0


def trouble_at(path: Path) -> OSError | None:
    """Return why a path cannot be examined (missing, or access denied); None if it can."""
    try:
        path.stat()
    except of_the_call(OSError) as error:
        return error
    except of_the_call(ValueError):  # an impossible name
        return _NOTHING_THERE
    return None


def is_missing(trouble: OSError | None) -> bool:
    """Return whether the trouble is that nothing is there."""
    return trouble is not None and trouble.errno in (errno.ENOENT, errno.ENOTDIR)


def is_there(path: Path) -> bool:
    """Return whether something is there, even if it is a broken link."""
    return _mode(path.lstat) != 0


def size_of(files: Iterable[Path]) -> int:
    """Return the total size of files in bytes; missing files count as 0."""
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except of_the_call(OSError):
            continue
    return total


def bytes_below(folder: Path) -> int:
    """Return the size of all files below a folder in bytes, even while files come and go."""
    places = os.walk(folder, onerror=_pass_over)
    return size_of(Path(place, name) for place, _, names in places for name in names)


def _pass_over(error: OSError) -> None:
    if raised_by_handler(error):
        raise error


def about_file(
    error: _AnyOSError, path: str | os.PathLike[str], cause: OSError = _NOTHING_THERE
) -> _AnyOSError:
    """Set ``errno``, ``strerror`` and ``filename`` of an error, as Python's own would have them."""
    error.errno, error.strerror, error.filename = cause.errno, cause.strerror, os.fspath(path)
    return error


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading, without waiting.

    Raises:
        OSError: It cannot be opened or is not a regular file; ``strerror`` says why.
    """
    try:
        refuse_special(path.stat().st_mode)  # before opening, because a socket cannot be opened
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115
    except of_the_call(ValueError):
        raise _odd_characters() from None
    try:
        refuse_special(os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def refuse_special(mode: int) -> None:
    """Refuse anything but a regular file, by its ``st_mode``.

    Raises:
        OSError: ``strerror`` says what it is.
    """
    if not stat.S_ISREG(mode):
        kind = _SPECIAL.get(stat.S_IFMT(mode), "a special file")
        raise OSError(errno.EINVAL, f"it is {kind}")


def _open_without_waiting(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a named pipe waits for a writer, perhaps forever.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def write_file(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file atomically: a reader sees either the old or the new content.

    Owner, group and mode of an existing file are kept; if the group cannot be kept, group access is
    dropped. A link stays a link; the file that it leads to is written.

    Args:
        path: The file to write.
        content: Its complete content.
        private: If the file is new, allow only this user to read and write it.

    Raises:
        NoDiskSpaceError: The disk has no room.
        FileWriteError: The file cannot be written.
    """
    is_link = stat.S_ISLNK(_mode(path.lstat))
    target = Path(os.path.realpath(path)) if is_link else path
    beside = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        old = _status_of(target)
        closed = private or old is not None  # from the start: it must not be readable meanwhile
        with open(beside, "xb", opener=_open_private if closed else None) as file:
            if old is not None:
                _keep_access(file.fileno(), old)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except of_the_call(OSError, ValueError) as error:
        cause = error if isinstance(error, OSError) else _odd_characters()
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
        kind = NoDiskSpaceError if full else FileWriteError
        message = f"{os.fspath(path)!r} cannot be written: {cause.strerror}"
        raise about_file(kind(message, field="path"), path, cause) from None
    finally:
        try:
            beside.unlink()
        except of_the_call(OSError, ValueError):
            pass  # after a success it was renamed


def _status_of(path: Path) -> os.stat_result | None:
    """Return the status of an existing regular file, or None if there is no file."""
    try:
        status = path.stat()
    except of_the_call(FileNotFoundError):
        return None
    refuse_special(status.st_mode)
    return status


def _keep_access(descriptor: int, old: os.stat_result) -> None:
    """Give a new file the owner, group and mode of the file that it replaces."""
    mode = stat.S_IMODE(old.st_mode)
    try:
        os.fchown(descriptor, old.st_uid, -1)
    except of_the_call(OSError):
        pass  # only root can give files away
    try:
        os.fchown(descriptor, -1, old.st_gid)
    except of_the_call(OSError):
        mode &= ~stat.S_IRWXG  # the new file has another group
    os.fchmod(descriptor, mode)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _odd_characters() -> OSError:
    return OSError(errno.EINVAL, "a path cannot have such characters")
