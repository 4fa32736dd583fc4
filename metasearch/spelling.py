"""Did-you-mean hints for names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def hint(name: object, known: Iterable[str]) -> str:
    """Return "(did you mean X?)" for the known name nearest to `name`, else "(known: A, B, ...)"."""
    names = list(known)
    by_lower_case = {known_name.lower(): known_name for known_name in names}
    nearest = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1)
    return f"(did you mean {by_lower_case[nearest[0]]}?)" if nearest else f"(known: {', '.join(names)})"
