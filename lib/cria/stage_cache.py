"""Folders that are either whole or not there: how the stages' cache keeps its word.

A result is filled in `<name>.partial`, sealed with a list of its files' checksums
and then renamed, which the file system does in one step. Nothing here knows what a
stage is.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from cria import fingerprint
from cria.provenance import write_json

SEAL = "provenance.json"


def partial(folder: Path) -> Path:
    """Where a result is filled before it has its final name.

    The name is stable: after an interruption, training finds its checkpoint there.
    """
    return folder.with_name(folder.name + ".partial")


def seal(folder: Path, provenance: dict) -> None:
    """List the checksums of everything in the partial folder and rename it."""
    unfinished = partial(folder)
    files = sorted(path for path in unfinished.rglob("*") if path.is_file())
    checksums = {
        path.relative_to(unfinished).as_posix(): fingerprint.of_file(path)
        for path in files
        if path != unfinished / SEAL
    }
    write_json(unfinished / SEAL, {**provenance, "files": checksums})
    os.replace(unfinished, folder)


def fault(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in a few words; None if it is whole."""
    try:
        files = dict(json.loads((folder / SEAL).read_text("utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{SEAL} is missing or unreadable"
    if "metrics.json" not in files:
        return f"{SEAL} does not list its files"
    for file, checksum in files.items():
        if not (folder / file).is_file():
            return f"{file} is missing"
        if fingerprint.of_file(folder / file) != checksum:
            return f"{file} does not match its checksum"
    return None


@contextlib.contextmanager
def lock(folder: Path, say: Callable[[str], None] | None) -> Iterator[None]:
    """Only one process at a time may fill a folder; the others wait.

    With `say=None` nobody waits: BlockingIOError. The system drops this kind of lock
    when its process ends, however it ends: a killed build leaves a lock *file*
    behind, but never a lock.
    """
    locks = folder.parent / "locks"  # never deleted: that would race with a waiter
    locks.mkdir(parents=True, exist_ok=True)
    with open(locks / folder.name, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if say is None:
                raise
            file.seek(0)
            who = f"process {pid}" if (pid := file.read().strip()) else "another one"
            say(f"{who} is building it; waiting …")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        print(os.getpid(), file=file, flush=True)
        yield


def clean(root: Path) -> tuple[int, list[str]]:
    """Delete all results, finished and partial: (bytes freed, names still in use)."""
    freed, busy = 0, []
    # A result's name ends in -<16 hex digits>: anything else in there is not ours.
    pattern = "*-" + "[0-9a-f]" * 16
    found = {*root.glob(pattern), *root.glob(pattern + ".partial")}
    for name in sorted({path.name.removesuffix(".partial") for path in found}):
        try:
            with lock(root / name, say=None):
                for path in (root / name, partial(root / name)):
                    files = [file for file in path.rglob("*") if file.is_file()]
                    freed += sum(file.stat().st_size for file in files)
                    shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            busy.append(name)
    return freed, busy
