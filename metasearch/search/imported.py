"""Imported priors: each a study without trials, whose attributes hold it as one file of priors, in pieces of text.

A trial as Optuna's rows costs 33 ms on SQLite, an attribute one row: a file of any size is imported in seconds. The
head (attribute `prior`: the number of pieces) is written last; without it the study is none of ours.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Sequence

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection

from metasearch.errors import InputError
from metasearch.search.store import CONTROLS, PRIOR, load_study
from metasearch.transfer.prior import Prior
from metasearch.transfer.priors_file import decode_priors, encode_priors

PIECE = 500_000
"""Characters of one attribute: far below what a text column of SQLite or PostgreSQL takes."""


def imported_prior(study: Study) -> Prior | None:
    """Return the prior that a study holds, None for any other study. Raises InputError if it was damaged."""
    attributes = study.user_attrs
    if PRIOR not in attributes:
        return None
    place = f"imported prior {study.study_name}"
    try:
        data = base64.b64decode("".join(attributes[f"{PRIOR}.{i}"] for i in range(attributes[PRIOR]["pieces"])))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(place, "must be whole: `metasearch delete` it and import it again") from error
    priors = decode_priors(data, place=place)
    if len(priors) != 1:
        raise InputError(place, "must be one prior", len(priors))
    return priors[0]


def import_priors(storage: RDBStorage, priors: Sequence[Prior], *, place: str) -> list[tuple[str, bool]]:
    """Write priors into a storage, all or, where one cannot be, none; return each name and whether it was new.

    One that is there already, and equal, is left as it is. place: where they come from, such as a file.
    Raises InputError for a name that a different prior or study has, or that cannot be told from a word of
    `--warm-start`.
    """
    names = set(optuna.get_all_study_names(storage))
    for prior in priors:
        here = f"{place}: prior {prior.name}"
        if prior.name in ("auto", "none") or prior.name.startswith("-"):
            raise InputError(here, "must not be called auto or none, or begin with -")
        if prior.name.endswith(CONTROLS):
            raise InputError(here, f"must not end in {CONTROLS}, which names a study's controls")
        if prior.name in names:
            there = imported_prior(load_study(storage, prior.name))
            if there is None:
                raise InputError(here, "has the name of a study that is here, and so a prior once it is finished")
            if there != prior:
                raise InputError(here, f"another prior of this name is here: `metasearch delete {prior.name}` first")
    for prior in priors:
        if prior.name not in names:
            _write(storage, prior)
    return [(prior.name, prior.name not in names) for prior in priors]


def _write(storage: RDBStorage, prior: Prior) -> None:
    directions = [StudyDirection[direction.upper()] for direction in prior.directions.values()]
    study = optuna.create_study(storage=storage, study_name=prior.name, directions=directions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(prior.directions))
    text = base64.b64encode(encode_priors([prior], place=f"prior {prior.name}")).decode()
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    for index, piece in enumerate(pieces):
        study.set_user_attr(f"{PRIOR}.{index}", piece)
    study.set_user_attr(PRIOR, {"pieces": len(pieces)})
