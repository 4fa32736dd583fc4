"""Did-you-mean hints for names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def hint(name: object, known: Iterable[str], *, most: int = 1) -> str:
    """Return "(did you mean X, Y?)" for the known names near to `name`, `most` at most, else "(known: A, B, ...)"."""
    names = list(known)
    by_lower_case = {known_name.lower(): known_name for known_name in names}
    nearest = difflib.get_close_matches(str(name).lower(), by_lower_case, n=most)
    found = ", ".join(by_lower_case[near] for near in nearest)
    return f"(did you mean {found}?)" if nearest else f"(known: {', '.join(names)})"
