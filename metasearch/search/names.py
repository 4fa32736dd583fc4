"""What a study's attributes are called and hold, stated here and nowhere else, and where its storage is.

Study attributes (JSON): `metasearch` (a StudyDescription), `lease` (see `lease.py`), `stop` (a request to stop),
`prior` (of a study that only holds an imported prior, see `imported.py`), `teacher` (its spec and metrics),
`measured DIGEST DEVICE` (what `bench --into` brought back of a network from a device, see `benchmarks.py`), and of a
companion `latency` (the serial measurements).
Trial attributes: `result` (a TrialResult), `run` (seed, worker, node, times), `failure` (reason and message),
`curve` of a trial stopped early, `losses` (how often its worker or driver died under it), `left` (true while it waits
to be run again: a driver that ends meanwhile is no loss), `begun` (when its last attempt began, and on what share of a
GPU), `spent` (GPU-seconds of its attempts before the last), `role` of a companion's run.

Imports neither Optuna nor, for SQLite, SQLAlchemy: together they take a third of a second.
"""

from __future__ import annotations

import os
import re

from metasearch.errors import InputError
from metasearch.folders import home_folder

BUSY_TIMEOUT_S = 60
CONTROLS = "/controls"
DESCRIPTION, STOP, PRIOR, LEASE = "metasearch", "stop", "prior", "lease"
TEACHER, LATENCY = "teacher", "latency"
MEASURED = "measured "
MEASURED_MS = "measured_latency_ms"
"""What the final runs' serial measurement is called where a study's own `latency_ms` is predicted, for a device."""
RESULT, RUN, FAILURE, CURVE, ROLE = "result", "run", "failure", "curve", "role"
LOSSES, LEFT, BEGUN, SPENT = "losses", "left", "begun", "spent"
LOST = "lost"
"""The failure reason of a trial that its machine lost too often; it does not count as finished."""

SQLITE = "sqlite:///"


def storage_url(flag: str | None = None) -> str:
    """Return the storage's URL: `flag`, else METASEARCH_STORAGE, else a SQLite file in the home folder.

    Raises InputError for a password in `flag` (every user of the machine can read a command line) or a scheme that is
    neither SQLite nor PostgreSQL.
    """
    text = flag or os.environ.get("METASEARCH_STORAGE") or f"{SQLITE}{home_folder() / 'studies.db'}"
    place = "--storage" if flag else "METASEARCH_STORAGE"
    if text.startswith(SQLITE):
        return text
    if "://" not in text:
        # Not shown: it may hold a password all the same.
        raise InputError(place, "must be a URL such as sqlite:///studies.db or postgresql://host/name")
    import sqlalchemy
    from sqlalchemy.engine import make_url

    try:
        url = make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:  # the latter of a port that is no number
        raise InputError(place, "must be a URL such as sqlite:///studies.db or postgresql://host/name") from error
    secret = url.password is not None or "password" in url.query
    if flag and secret:
        raise InputError(
            "--storage", "must not hold a password, which others can read there; set METASEARCH_STORAGE or PGPASSFILE"
        )
    if url.get_backend_name() not in {"sqlite", "postgresql"}:
        raise InputError(place, "must begin with sqlite:// or postgresql://", url.get_backend_name())
    if url.get_backend_name() == "postgresql" and url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return url.render_as_string(hide_password=False)


def shown_url(url: str) -> str:
    """Return the URL as it may be printed: without user's password, wherever it stands."""
    shown = url
    if not url.startswith(SQLITE):
        from sqlalchemy.engine import make_url

        shown = make_url(url).render_as_string(hide_password=True)
    return re.sub(r"(?i)(password=)[^&]*", r"\1***", shown)
