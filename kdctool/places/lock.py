"""One kdctool per remote folder, as well as a store allows it: a lock object that its owner renews.

Two commands that start in the same instant on a store without exclusive writing may both go on; each keeps notes of its
own and makes the same bytes, so work is lost, never data.
"""

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from kdctool.errors import EnvironmentFault
from kdctool.files import InUse
from kdctool.places.remote import Missing, Remote, Stored

BEAT_S, STALE_S = 30.0, 300.0
"""The owner renews its lock so often; without that, another machine may take it after so long."""


@contextlib.contextmanager
def locked(folder: Remote, name: str, against: str) -> Iterator[None]:
    """Hold the lock `name` in `folder`; InUse while another process holds one whose name matches `against`."""
    text = json.dumps(_me() | {"token": secrets.token_hex(8)}).encode()
    _check_free(folder, against, "")
    if not (folder / name).create(text):
        raise InUse(f"{folder} is in use by another kdctool, which began just now", "wait for it, or stop it")
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(folder / name, text, over), daemon=True)
    try:
        # Of two that saw nobody at the least one sees the other now.
        _check_free(folder, against, name)
        renewing.start()
        yield
    finally:
        over.set()
        if renewing.is_alive():
            renewing.join()
        with contextlib.suppress(EnvironmentFault):  # It will be found to be of a process that is gone.
            folder.remove([name])


def _renew(place: Remote, text: bytes, over: threading.Event) -> None:
    while not over.wait(BEAT_S):
        with contextlib.suppress(EnvironmentFault):  # The work itself will tell of a store that is away.
            place.write(text)


def _check_free(folder: Remote, against: str, mine: str) -> None:
    for name, stored in folder.children().items():
        if name == mine or not re.fullmatch(against, name):
            continue
        try:
            owner = json.loads((folder / name).read())
        except Missing:
            continue
        except ValueError:
            owner = {}
        if _is_gone(owner, stored):
            folder.remove([name])
        else:
            who = f"process {owner.get('process')} on {owner.get('host')}" if owner else "another kdctool"
            raise InUse(
                f"{folder} is in use by {who}",
                f"wait for it, or stop it; where it is gone: delete {folder / name}, or wait"
                f" {STALE_S / 60:.0f} minutes after its end",
            )


def _me() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "machine": _machine(),
        "started": psutil.Process().create_time(),
    }


def _machine() -> str:
    """Tells machines, and containers with process numbers of their own, apart."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_gone(owner: dict[str, Any], stored: Stored) -> bool:
    """Whether the owner is dead, when it was on this machine; else whether it has not renewed its lock for long."""
    if owner.get("machine") and owner["machine"] == _machine():
        try:
            return bool(psutil.Process(int(owner["process"])).create_time() != owner.get("started"))
        except psutil.NoSuchProcess:
            return True
    modified = stored.modified
    if isinstance(modified, str):
        modified = datetime.fromisoformat(modified)
    if not isinstance(modified, datetime):
        return False
    return time.time() - modified.timestamp() > STALE_S
