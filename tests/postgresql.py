"""A PostgreSQL server of the tests' own, from the programs that Debian's package `postgresql` installs."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

PASSWORD = "canary-9f3b"
"""Of the server's one user: it must be shown nowhere."""


def new_database(url: str) -> str:
    """Make a database without tables on the server of this URL; return its own, password included."""
    import sqlalchemy

    name = f"new_{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return engine.url.set(database=name).render_as_string(hide_password=False)


def programs() -> Path | None:
    """Return the folder of PostgreSQL's own programs, None where it is not installed."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def server_user() -> str | None:
    """Return whom the server must run as: it refuses root. None: as whoever runs the tests."""
    if os.geteuid() != 0:
        return None
    return next((entry.pw_name for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody")), None)


@dataclass(frozen=True)
class Server:
    """A running server. url: with its password. control: runs pg_ctl on it."""

    url: str
    control: Callable[..., None]

    def restart(self, *, mode: str = "fast") -> None:
        """Stop the server and start it again. mode: fast, or immediate as after a crash."""
        self.control("-w", "-m", mode, "restart")


@contextmanager
def running(folder: Path, binaries: Path) -> Iterator[str]:
    """Start a server with its data in `folder`, on loopback with a password; give its URL and stop it at the end."""
    with serving(folder, binaries) as server:
        yield server.url


@contextmanager
def serving(folder: Path, binaries: Path, *, address: str = "127.0.0.1") -> Iterator[Server]:
    """Start a server as `running` does. address: of the one interface it listens at, and lets its neighbours in."""
    user = server_user()
    if user is not None:
        shutil.chown(folder, user)
    secret = folder / "secret"
    secret.write_text(PASSWORD)
    if user is not None:
        shutil.chown(secret, user)
    data = folder / "data"

    def call(program: str, *arguments: str) -> None:
        command = [str(binaries / program), *arguments]
        # into a file: the server inherits what pg_ctl writes to, and a pipe would wait for it
        with (folder / "output.txt").open("a") as output:
            subprocess.run(command, check=True, user=user, cwd="/", stdout=output, stderr=output, timeout=60)

    with socket.socket() as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    call("initdb", "-D", str(data), "-U", "u", "-A", "scram-sha-256", f"--pwfile={secret}", "-N")
    with (data / "pg_hba.conf").open("a") as access:
        access.write("host all all samenet scram-sha-256\n")
    options = f"-p {port} -c listen_addresses={address} -c unix_socket_directories= -c fsync=off"
    control = partial(call, "pg_ctl", "-D", str(data), "-l", f"{data}/log.txt")
    control("-w", "-o", options, "start")
    try:
        yield Server(f"postgresql+psycopg://u:{PASSWORD}@{address}:{port}/postgres", control)
    finally:
        control("-m", "immediate", "stop")
