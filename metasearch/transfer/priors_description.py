"""What a file of priors says of each of them, beside its trials: JSON, checked when it is read.

    {"format": 1, "priors": [{"name", "task", "fingerprint", "directions", "distributions", "fixed", "features",
                              "versions"}, ...]}

A distribution is as Optuna's `distribution_to_json` has it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution

from metasearch.errors import InputError
from metasearch.transfer.prior import Prior

FORMAT = 1
TEXTS = ("task", "fingerprint")
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "directions": ("must be minimize or maximize", lambda value: value in ("minimize", "maximize")),
    "features": ("must be a finite number", lambda value: _is_number(value) and math.isfinite(value)),
    "versions": ("must be a text", lambda value: isinstance(value, str)),
    "fixed": ("must be a text, a number or a bool", lambda v: v is None or isinstance(v, (str, int, float))),
}
"""What each value of a mapping must be."""


def description_json(priors: Sequence[Prior]) -> str:
    """Return what is said of the priors, their trials apart; `read_description` is its inverse."""
    return json.dumps({"format": FORMAT, "priors": [_plain(prior) for prior in priors]})


def read_description(text: bytes | None, place: str) -> tuple[Prior, ...]:
    """Return the priors that a text describes, without trials. text: None where there is none.

    Raises InputError for what is no description, of another format, or breaks a rule.
    """
    if text is None:
        raise InputError(place, "must be a file of priors: its metadata describe none")
    try:
        described = json.loads(text)
        number, raw_priors = described["format"], described["priors"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{place}: metadata", "must be JSON with the keys format and priors", str(error)) from error
    if number != FORMAT:
        raise InputError(f"{place}: format", f"must be {FORMAT}, which this version reads", number)
    if not isinstance(raw_priors, list):
        raise InputError(f"{place}: priors", "must be a list", raw_priors)
    priors = tuple(_prior(raw, f"{place}: priors[{position}]") for position, raw in enumerate(raw_priors))
    names = [prior.name for prior in priors]
    for position, name in enumerate(names):
        if name in names[:position]:
            raise InputError(f"{place}: priors[{position}].name", "is there twice", name)
    return priors


def _plain(prior: Prior) -> dict[str, Any]:
    plain = asdict(replace(prior, trials=(), distributions={}))
    del plain["trials"]
    return plain | {"distributions": {n: json.loads(distribution_to_json(d)) for n, d in prior.distributions.items()}}


def _prior(raw: Any, place: str) -> Prior:
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str) or not raw["name"]:
        raise InputError(place, "must be a mapping with a name", raw)
    place = f"{place} ({raw['name']})"
    for key in TEXTS:
        if not isinstance(raw.get(key), str):
            raise InputError(f"{place}: {key}", "must be a text", raw.get(key))
    for key in (*RULES, "distributions"):
        if not isinstance(raw.get(key), dict):
            raise InputError(f"{place}: {key}", "must be a mapping", raw.get(key))
    if not raw["directions"]:
        raise InputError(f"{place}: directions", "must name an objective")
    for key, (rule, holds) in RULES.items():
        for name, value in raw[key].items():
            if not holds(value):
                raise InputError(f"{place}: {key}.{name}", rule, value)
    distributions = {}
    for name, value in raw["distributions"].items():
        try:
            distributions[name] = json_to_distribution(json.dumps(value))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{place}: distributions.{name}", f"must be one of Optuna's ({error})", value) from error
    return Prior(**{key: raw[key] for key in ("name", *TEXTS, *RULES)}, distributions=distributions, trials=())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
