"""Searches: the space of configurations, the studies that are kept, and the trials that Ray Tune runs."""

import os

# Ray reads these when it is imported, which several modules of this package do: they must be set before any of them.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Whatever log_to_driver says, Ray prints to our stdout that a worker died; the ledger records it. "." skips every line.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
