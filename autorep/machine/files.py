"""Files that a kill leaves whole, and locks that the end of a process frees."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def user_path(text: str) -> Path:
    """A path of the command line, with the home folder for a leading ~, which the shell leaves alone in --flag=~/x."""
    return Path(os.path.expanduser(text))  # Path's own raises where there is no such user


def write_atomically(path: Path, content: str | bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a kill or a power cut leaves either the old one or the new one whole. A link stays one.

    Args:
        content: the text, in which names that are no UTF-8 become escapes, or the bytes, or a function that writes
            them to an open file.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with naming(path), temporary.open("wb") as file:
            if callable(content):
                _written(content, file)
            else:
                file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in errors of reading and writing: those of an open file do not say which it is."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def of_system(error: Exception) -> bool:
    """Whether the system failed to read a file (no permission, too many open files), which may well be whole."""
    return isinstance(error, OSError) and error.errno is not None


class _Watched:
    """A file that remembers why a write failed: torch's zip writer reports something else."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _written(content: Callable[[IO[bytes]], object], file: IO[bytes]) -> None:
    watched = _Watched(file)
    try:
        content(watched)
    except RuntimeError:
        if watched.error is not None:
            raise watched.error from None
        raise


def to_json_text(value: Any) -> str:
    """A value as JSON, with null in the place of numbers that are not finite: JSON has neither NaN nor infinity."""
    return json.dumps(finite(value), indent=2, allow_nan=False)


def finite(value: Any) -> Any:
    """A value of JSON's types with None in the place of numbers that are not finite, however nested."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json_object(path: Path, needed: Callable[[dict[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file.

    Args:
        needed: from the object, the keys that it must have, with the types of their values, or what those need.

    Raises:
        ValueError: the file is damaged: cut, empty, zeroed, of another kind, or without a key. The message names it.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, and it holds {type(found).__name__}")
        _check_types(found, needed(found))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or of another program ({error}): remove it and the summary.json of its "
                         "run, which writes both again when it is resumed with --resume auto") from error
    return found


def _check_types(found: dict[str, Any], needed: Mapping[str, Any], where: str = "") -> None:
    for key, kind in needed.items():
        if not isinstance(found.get(key), dict if isinstance(kind, dict) else kind):
            raise ValueError(f"its {where + key!r} is missing or of another type")
        if isinstance(kind, dict):
            _check_types(found[key], kind, f"{where}{key}.")


def read_table(path: Path, needed: Iterable[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file in UTF-8.

    Args:
        needed: the columns that its header must have.

    Raises:
        ValueError: the file is damaged: a row has more or fewer cells than the header, or it is no text; or it is
            another table, without a column. The message names it.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a byte-order mark first
        reader = csv.DictReader(file)
        try:
            rows = list(reader)
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path} is damaged or no CSV file in UTF-8 ({error})") from error
    if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
        raise ValueError(f"{path} has no column {', '.join(missing)}: expected a CSV file with one row per finished "
                         "run, such as those in results/; give another path")
    if any(None in row or None in row.values() for row in rows):
        raise ValueError(f"{path} is damaged or cut off: a row has more or fewer cells than the header")
    return rows


def try_lock(path: Path) -> IO | None:
    """The file, open and locked; None if another process holds it.

    The lock is the open file: closing it frees the lock, and so does the end of this process and of every child that
    inherited it. (filelock cannot hand its lock to a child.)
    """
    file = path.open("a")
    try:
        _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file within the block; waits for other processes."""
    with path.open("a") as file:
        _flock(file, fcntl.LOCK_EX)
        yield


def _flock(file: IO, operation: int) -> None:
    """Lock an open file. Where the file system has no locks (Lustre, some NFS) it stays unlocked, with a warning."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(f"the file system of {Path(file.name).parent} has no locks ({error.strerror}): nothing keeps a "
                      "second process from writing there, so start only one", stacklevel=4)
