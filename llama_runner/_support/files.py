"""Files that a user names: what may name one, opening, writing whole or not at all, measuring.

A name can be anything: no path at all, too long, a directory, a pipe that nobody writes to.
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
    """The path, or the name, that a user gave, as text.

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
        raise ModelNotFoundError(f"{what}='': an empty name names no model", field=what)
    return text


def user_path(given: object, what: str = "model") -> Path:
    """The path that a user gave; ``~`` is the home directory, as in a shell.

    Raises:
        As :func:`path_text`.
    """
    return at_home(path_text(given, what))


def at_home(path: str | os.PathLike[str]) -> Path:
    """The path with the home directory in place of ``~``, where there is such a user."""
    try:
        return Path(path).expanduser()
    except of_the_call(RuntimeError):
        return Path(path)


def is_file(path: Path) -> bool:
    """Whether a regular file is there."""
    return stat.S_ISREG(_mode(path.stat))


def is_directory(path: Path) -> bool:
    """Whether a directory is there."""
    return stat.S_ISDIR(_mode(path.stat))


def _mode(look: Callable[[], os.stat_result]) -> int:
    """What kind of file is there, 0 if nothing is.

    pathlib's own questions raise where no path can have such a name, and drop what a signal handler
    raises meanwhile.
    """
    try:
        return look().st_mode
    except of_the_call(OSError, ValueError):
        return 0


def trouble_at(path: Path) -> OSError | None:
    """Why nothing can be seen under a path, if so: it is not there, or may not be looked at."""
    try:
        path.stat()
    except of_the_call(OSError) as error:
        return error
    except of_the_call(ValueError):  # of a name that nothing can have
        return _NOTHING_THERE
    return None


def is_missing(trouble: OSError | None) -> bool:
    """Whether it is that nothing is there."""
    return trouble is not None and trouble.errno in (errno.ENOENT, errno.ENOTDIR)


def is_there(path: Path) -> bool:
    """Whether something is there, be it a link to nothing."""
    return _mode(path.lstat) != 0


def size_of(files: Iterable[Path]) -> int:
    """The bytes that files have together; those that are not there, or no longer, have none."""
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except of_the_call(OSError):
            continue
    return total


def bytes_below(folder: Path) -> int:
    """The bytes of all files in a folder and in those below it, also while some come and go."""
    places = os.walk(folder, onerror=_pass_over)
    return size_of(Path(place, name) for place, _, names in places for name in names)


def _pass_over(error: OSError) -> None:
    if raised_by_handler(error):
        raise error


def about_file(
    error: _AnyOSError, path: str | os.PathLike[str], cause: OSError = _NOTHING_THERE
) -> _AnyOSError:
    """An error of ours that also has what Python's own would: which file, and what was wrong."""
    error.errno, error.strerror, error.filename = cause.errno, cause.strerror, os.fspath(path)
    return error


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading, if it is a regular one, without waiting for anybody.

    Raises:
        OSError: ``strerror`` says what is wrong with it.
    """
    try:
        refuse_special(path.stat().st_mode)  # a socket cannot be opened to find out
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
    """Refuse what is no regular file, by its ``st_mode``.

    Raises:
        OSError: ``strerror`` says what it is.
    """
    if not stat.S_ISREG(mode):
        kind = _SPECIAL.get(stat.S_IFMT(mode), "a special file")
        raise OSError(errno.EINVAL, f"it is {kind}")


def _open_without_waiting(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a named pipe waits for a writer, perhaps for ever.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def write_file(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file so that a reader sees the old or the new content, never a part.

    Who may read and write a file that is there already still may, and nobody else; its group may
    not any more where this user cannot give it a file. A link stays one, as where a file is opened
    to be written.

    Args:
        path: Where to write it.
        content: All that it will hold.
        private: Let nobody but the user read and write it, if it is new.

    Raises:
        NoDiskSpaceError: The disk has no room.
        FileWriteError: It cannot be written there.
    """
    is_link = stat.S_ISLNK(_mode(path.lstat))
    target = Path(os.path.realpath(path)) if is_link else path
    beside = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        old = _status_of(target)
        closed = private or old is not None  # from the start: a part may be read meanwhile
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
            pass  # it is not there once it has its name


def _status_of(path: Path) -> os.stat_result | None:
    """The status of the regular file that is there, if one is."""
    try:
        status = path.stat()
    except of_the_call(FileNotFoundError):
        return None
    refuse_special(status.st_mode)
    return status


def _keep_access(descriptor: int, old: os.stat_result) -> None:
    """Give a new file the owner, the group and the mode of the one that it replaces."""
    mode = stat.S_IMODE(old.st_mode)
    try:
        os.fchown(descriptor, old.st_uid, -1)
    except of_the_call(OSError):
        pass  # only root can give files away
    try:
        os.fchown(descriptor, -1, old.st_gid)
    except of_the_call(OSError):
        mode &= ~stat.S_IRWXG  # another group is meant now
    os.fchmod(descriptor, mode)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _odd_characters() -> OSError:
    return OSError(errno.EINVAL, "no path has such characters")
