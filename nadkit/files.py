"""Where data lie and how files are written: data folders, atomic writes, downloads.

A file under its final name is complete: it is written under a temporary name beside it and then
renamed.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from tqdm import tqdm

TIMEOUT = 30.0  # seconds of silence after which a server counts as unreachable


class DataError(RuntimeError):
    """Data are missing or damaged, or cannot be fetched or written; the message says what to do."""


@contextmanager
def held(folder: Path, otherwise: Exception) -> Iterator[None]:
    """Make a folder, and lock it against other processes during the block.

    Raises:
        Exception: `otherwise`, if another process holds it.
        OSError: it cannot be made or locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise otherwise from None
    try:
        yield
    finally:
        lock.release()


def expanded(path: str | Path) -> Path:
    """Return a path with the home of a user in place of ``~`` or ``~user``; unchanged if the user is unknown."""
    return Path(os.path.expanduser(path))  # Path.expanduser would raise


def data_folders() -> list[Path]:
    """Return the folders to look for data in: ``NADKIT_DATA`` if set, then the user's cache."""
    chosen = os.environ.get("NADKIT_DATA")
    cache = user_cache_path("nadkit", appauthor=False)
    return [expanded(chosen), cache] if chosen else [cache]


def folder_with(files: Iterable[str | Path]) -> Path | None:
    """Return the first data folder that holds all of ``files`` (relative paths), or None."""
    files = list(files)
    return next((f for f in data_folders() if all((f / file).is_file() for file in files)), None)


def find(relative: str | Path) -> Path | None:
    """Return the file at ``relative`` in the first data folder that holds it, or None."""
    folder = folder_with([relative])
    return None if folder is None else folder / relative


def describe_search(files: Iterable[str | Path]) -> str:
    """Return words for error messages: which ``files`` were looked for in which data folders."""
    names = ", ".join(map(str, files))
    return f"looked for {names} in {' and in '.join(map(_describe_folder, data_folders()))}"


def _describe_folder(folder: Path) -> str:
    return f"{folder}{'' if folder.is_dir() else ' (no such folder)'}"


def download_folder() -> Path:
    """Return the first data folder that can be written to; it is made if it does not exist.

    Raises:
        DataError: none of them can be written to.
    """
    for folder in data_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    tried = " and ".join(map(str, data_folders()))
    raise DataError(f"cannot write to {tried}; set NADKIT_DATA to a folder that you can write to")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; the file becomes ``path`` if the block succeeds.

    After an error, Ctrl-C included, the temporary file is gone and what stood at ``path`` is
    untouched.

    Raises:
        DataError: the file cannot be written: no space, no permission, no such folder.
    """
    path = Path(path)
    # The suffix stays, because np.save and others append theirs to a name that lacks it.
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        own = str(error.filename) in map(str, (temporary, *path.parents))
        if not own and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        room = "make room there or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise DataError(
            f"cannot write {path.name} in {path.parent}: {error.strerror}; {room}choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files that killed processes left in ``folder``; nobody may be writing there."""
    for path in Path(folder).iterdir():
        if re.fullmatch(r"\..+-[0-9a-f]{8}(\.\w+)?", path.name):
            path.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, path: str | Path, sha256: str | None = None, *, progress: bool = True) -> Path:
    """Download ``url`` to ``path``, with a progress bar, and return the path.

    Nothing appears at ``path`` unless the download is complete and, if ``sha256`` is given, has
    that checksum.

    Raises:
        DataError: the server cannot be reached, the download breaks off, its checksum is wrong, or
            the file cannot be written.
    """
    path = Path(path)
    remedy = f"try again, or fetch it by hand and put it at {path}"
    try:
        with atomic_write(path) as temporary:
            announced = _stream(url, temporary, path.name, progress)
            if fault := _fault(temporary, announced, sha256):
                raise DataError(f"the download of {url} {fault}; {remedy}")
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the server's answer, too, and holds the connection
        raise DataError(f"could not download {url}: {error}; {remedy}") from error
    return path


def _stream(url: str, target: Path, label: str, progress: bool) -> int | None:
    """Write what ``url`` sends to ``target`` and return how many bytes the server announced."""
    request = urllib.request.Request(url, headers={"User-Agent": "nadkit"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response, open(target, "wb") as file:
        announced = response.headers.get("Content-Length")
        announced = None if announced is None else int(announced)
        bar = {"total": announced, "desc": label, "disable": not progress}
        with tqdm.wrapattr(response, "read", **bar) as source:
            shutil.copyfileobj(source, file)
    return announced


def _fault(file: Path, announced: int | None, expected: str | None) -> str | None:
    """Say what is wrong with a downloaded file, or return None."""
    received = file.stat().st_size
    if announced is not None and received != announced:
        return f"broke off after {received:,} of {announced:,} bytes"
    if expected is not None and (found := sha256(file)) != expected:
        return (
            f"has the SHA-256 {found}, expected {expected}: it changed at its source or on the way"
            " (perhaps a login page of the network came instead)"
        )
    return None
