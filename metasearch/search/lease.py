"""One live driver per study: a lease in the study's attributes, taken and renewed by compare-and-swap.

Optuna's own attribute calls overwrite; here the row is inserted under its unique key, or updated only where it still
holds what was read, so that of two drivers that start at once exactly one goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages import RDBStorage
from optuna.study import Study
from sqlalchemy import Engine, text

from metasearch.errors import NotFoundError, StorageError
from metasearch.search.names import LEASE, STOP

RENEW_S = 5.0
EXPIRES_S = 60.0
"""A driver not heard of for this long is dead. On the driver's own machine its process is looked at, too."""
LOOK_S = 0.5
"""Between two looks at the lease of a driver on another machine."""

_held: set[str] = set()
"""The tokens of this process. In a container a new driver often gets the very number of the dead one."""


class Lease:
    """Holds a study for this process until `release`; a thread renews it and watches for a request to stop.

    on_stop: called once, from the thread, with the reason: another process asked for it, or the lease was lost, or
    cannot be renewed. tell: hears what is waited for. lost: that reason where it is the storage's or another driver's,
    "" while nothing of the kind has happened. died: when the dead driver that had it last renewed it (Unix time), None
    where there was none.
    """

    def __init__(
        self, study: Study, *, on_stop: Callable[[str], None], tell: Callable[[str], None] = lambda line: None
    ) -> None:
        storage: Any = study._storage  # the cached wrapper; its backend owns the engine
        backend = getattr(storage, "_backend", storage)
        assert isinstance(backend, RDBStorage)
        self._engine: Engine = backend.engine
        self._study_id: int = study._study_id
        self._name = study.study_name
        self._on_stop, self._tell = on_stop, tell
        self._identity: dict[str, Any] = {**_here(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        self._text = self.lost = ""
        self.died: float | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def acquire(self) -> None:
        """Take the lease. Raises StorageError while another live driver holds it.

        The lease of another machine is watched before it is taken over: the clocks of two machines may differ by more
        than a lease lasts.
        """
        _held.add(self._identity["token"])
        try:
            while not self._swap(held := self._free_lease()):
                if _read(self._engine, self._study_id, LEASE) is not None:  # else given back between look and swap
                    raise StorageError(f"study {self._name}: another driver has just started")
                if not self._study_exists():
                    raise NotFoundError(f"study {self._name}: was deleted meanwhile")
        except BaseException:
            _held.discard(self._identity["token"])
            raise
        self.died = None if held is None else json.loads(held)["time"]
        self._forget_stop()
        self._thread.start()

    def _free_lease(self) -> str | None:
        """Return the lease of a dead driver, None where there is none. Raises StorageError for that of a live one."""
        held = _read(self._engine, self._study_id, LEASE)
        if held is None:
            return None
        holder = json.loads(held)
        if _is_here(holder):
            renewed = alive(holder)
        else:
            now = self._watched(held, holder)
            held, renewed = now, now not in (held, None)
        if renewed:
            raise StorageError(
                f"study {self._name}: a driver is running (process {holder['pid']} on {holder['host']}); "
                f"`metasearch stop {self._name}` ends it"
            )
        return held

    def _watched(self, held: str, holder: dict[str, Any]) -> str | None:
        """Return what stands in a lease's place once it changes, or has expired by its own time and ours."""
        age_s = max(0.0, time.time() - holder["time"])
        watch_s = max(EXPIRES_S - age_s, 3 * RENEW_S)
        self._tell(
            f"study {self._name}: process {holder['pid']} on {holder['host']} was driving it; "
            f"watching for up to {watch_s:.0f} s whether it still does"
        )
        until = time.monotonic() + watch_s
        now: str | None = held
        while now == held and time.monotonic() < until:
            time.sleep(LOOK_S)
            now = _read(self._engine, self._study_id, LEASE)
        return now

    def release(self) -> None:
        """Give the lease back and end the thread."""
        self._done.set()
        self._thread.join()
        _held.discard(self._identity["token"])
        # A storage that is away keeps the lease, which is then a dead driver's; why it is away was told already.
        with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError), self._engine.begin() as connection:
            connection.execute(
                text("DELETE FROM study_user_attributes WHERE study_id = :id AND key = :key AND value_json = :old"),
                {"id": self._study_id, "key": LEASE, "old": self._text},
            )

    def _renew(self) -> None:
        try:
            self._renew_until_done()
        except Exception as error:  # of whatever type: without the thread nobody would hear of it
            self._lose(f"the lease cannot be renewed: {type(error).__name__}: {error}")

    def _lose(self, reason: str) -> None:
        self.lost = " ".join(reason.split())  # a database's own words are often two lines
        self._on_stop(self.lost)

    def _renew_until_done(self) -> None:
        told = False
        failing_since: float | None = None
        while not self._done.wait(RENEW_S):
            try:
                ours = self._swap(self._text) or self._is_ours()
                stop = _read(self._engine, self._study_id, STOP) is not None
                failing_since = None
            except sqlalchemy.exc.SQLAlchemyError as error:  # a storage briefly away: try until the lease runs out
                failing_since = failing_since or time.time()
                ours, stop = time.time() - failing_since < EXPIRES_S, False
                if not ours and not told:
                    told = True
                    self._lose(f"the storage has been away for {EXPIRES_S:.0f} s: {getattr(error, 'orig', error)}")
                continue
            if (stop or not ours) and not told:
                told = True
                if stop:
                    self._on_stop("stop requested")
                else:
                    self._lose("another driver took the study")

    def _is_ours(self) -> bool:
        """Whether the lease is ours after all: a renewal whose answer was lost with the connection."""
        held = _read(self._engine, self._study_id, LEASE)
        if held is None or json.loads(held)["token"] != self._identity["token"]:
            return False
        self._text = held
        return True

    def _swap(self, held: str | None) -> bool:
        """Write our lease where `held` still stands (None: where nothing does); return whether that worked."""
        new = json.dumps({**self._identity, "time": time.time()})
        try:
            with self._engine.begin() as connection:
                if held is None:  # not for a study that was deleted, which SQLite would take
                    statement = (
                        "INSERT INTO study_user_attributes (study_id, key, value_json) "
                        "SELECT study_id, :key, :new FROM studies WHERE study_id = :id"
                    )
                else:
                    statement = (
                        "UPDATE study_user_attributes SET value_json = :new "
                        "WHERE study_id = :id AND key = :key AND value_json = :held"
                    )
                values = {"id": self._study_id, "key": LEASE, "new": new, "held": held}
                swapped = connection.execute(text(statement), values).rowcount == 1
        except sqlalchemy.exc.IntegrityError:
            return False
        if swapped:
            self._text = new
        return swapped

    def _study_exists(self) -> bool:
        with self._engine.begin() as connection:
            found = connection.execute(text("SELECT 1 FROM studies WHERE study_id = :id"), {"id": self._study_id})
            return found.first() is not None

    def _forget_stop(self) -> None:
        with self._engine.begin() as connection:
            connection.execute(
                text("DELETE FROM study_user_attributes WHERE study_id = :id AND key = :key"),
                {"id": self._study_id, "key": STOP},
            )


def holder_of(study: Study) -> dict[str, Any] | None:
    """Return who drives the study now (host, pid, time), as far as one look and the clocks tell, or None."""
    holder = study.user_attrs.get(LEASE)
    return holder if holder is not None and alive(holder) else None


def ask_to_stop(study: Study) -> None:
    """Ask the study's driver to stop. Raises NotFoundError where none can be running.

    One on another machine may be, whatever its clock says; the next driver forgets what no other has heard.
    """
    holder = study.user_attrs.get(LEASE)
    if holder is None or (_is_here(holder) and not alive(holder)):
        raise NotFoundError(f"study {study.study_name}: no driver is running")
    study.set_user_attr(STOP, True)


def _read(engine: Engine, study_id: int, key: str) -> str | None:
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT value_json FROM study_user_attributes WHERE study_id = :id AND key = :key"),
            {"id": study_id, "key": key},
        ).scalar()
    return None if found is None else str(found)


def alive(holder: dict[str, Any]) -> bool:
    """Return whether the driver that wrote a lease still runs, as far as one look and the clocks tell."""
    if not _is_here(holder):
        return bool(time.time() - holder["time"] < EXPIRES_S)
    if holder["pid"] == os.getpid():
        return holder["token"] in _held
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and somebody else's
        pass
    # A process that has the dead driver's number but does not renew is another program.
    return bool(time.time() - holder["time"] < EXPIRES_S)


def _is_here(holder: dict[str, Any]) -> bool:
    return all(holder.get(name) == value for name, value in _here().items())


def _here() -> dict[str, str | None]:
    """Return what processes share that know each other's numbers. Machines may have one name, and so may containers."""
    boot = namespace = None
    with contextlib.suppress(OSError):  # of a system that is not Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "pid_namespace": namespace}
