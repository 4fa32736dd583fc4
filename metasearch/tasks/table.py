"""Tables of vectors, CSV or Parquet: a row is an example, one column its label, every other column a number.

Symbols: N rows, counted from 1 without the header; F columns beside the label.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from metasearch.errors import InputError
from metasearch.functions import first_line
from metasearch.tasks.raw import Array, RawData, raw_from_arrays

if TYPE_CHECKING:
    import pandas as pd

LABEL_COLUMNS = ("label", "labels", "class", "target", "y")
PARQUET = (".parquet", ".pq")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
"""How a CSV file may spell a missing number. A label may be any text but the empty one: NA is Namibia's code."""

Float32s = npt.NDArray[np.float32]


def read_tables(paths: Sequence[Path], label: str | None) -> RawData:
    """Return the vectors of one or two tables: train and, where given, test. label: its column, else the usual one.

    Labels are integers or text, and name the classes. The notes hold the names of the columns, in their order, and of
    the label. Raises InputError, naming file, column and row, for a file that is no table, for columns that are not
    numbers, for missing or infinite values, and where train and test have different columns.
    """
    columns = _column_names(paths[0])
    label = _label_column(paths[0], columns, label)
    features = [name for name in columns if name != label]
    if not features:
        raise InputError(str(paths[0]), f"needs a column beside {label!r}", columns)
    for path in paths[1:]:
        others = _column_names(path)
        if differing := sorted(set(others) ^ set(columns)):
            rule = f"must have the columns of {paths[0].name}, in any order; those in one of the two only"
            raise InputError(str(path), rule, differing[:10])
    parts = []
    for path in paths:
        frame = _read_frame(path, label)
        if len(frame) == 0:
            raise InputError(str(path), "holds no rows")
        vectors = np.stack([_numbers(path, frame[name], name) for name in features], axis=1)
        parts.append((str(path), vectors, _labels(path, frame[label], label)))
    return replace(raw_from_arrays(parts), notes={"columns": features, "label_column": label})


def _column_names(path: Path) -> list[str]:
    """Return the names of the columns; raises InputError for repeated and empty ones.

    Of a CSV file a second line is read too: pandas would take what it has too much for an index.
    """
    suffix = _suffix(path)
    if suffix in PARQUET:
        names = [str(name) for name in _read_parquet(path).columns]
    else:
        import pandas as pd

        try:
            header = pd.read_csv(
                path,
                sep=SEPARATORS[suffix],
                header=None,
                nrows=2,
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
            )
        except (OSError, ValueError, EOFError, csv.Error) as error:  # pandas' own are ValueErrors
            raise InputError(str(path), f"cannot be read as a table ({first_line(error)})") from error
        names = [str(name) for name in header.iloc[0]]
    for position, name in enumerate(names):
        if not name:
            rule = "has no name; if it is an index, write the table without it"
            raise InputError(str(path), f"column {position + 1} of {len(names)} {rule}")
        if name in names[:position]:
            raise InputError(str(path), "has two columns of one name", name)
    return names


def _label_column(path: Path, columns: list[str], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in columns:
            raise InputError(str(path), f"has no column {wanted!r} for the label", columns[:20])
        return wanted
    found = [name for name in LABEL_COLUMNS if name in columns]
    if len(found) != 1:
        rule = f"must have exactly one of the columns {', '.join(LABEL_COLUMNS)}"
        raise InputError(str(path), f"{rule}, or be told which holds the label: table:FILE#COLUMN", columns[:20])
    return found[0]


def _read_frame(path: Path, label: str) -> pd.DataFrame:
    suffix = _suffix(path)
    if suffix in PARQUET:
        return _read_parquet(path)
    import pandas as pd

    missing = {name: [""] if name == label else list(MISSING) for name in _column_names(path)}
    try:
        frame = pd.read_csv(
            path,
            sep=SEPARATORS[suffix],
            low_memory=False,  # else each chunk of a column gets a type of its own
            keep_default_na=False,
            na_values=missing,
            encoding="utf-8-sig",
        )
    except (OSError, ValueError, EOFError, csv.Error) as error:
        raise InputError(str(path), f"cannot be read as a table ({first_line(error)})") from error
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError, TypeError, LookupError, NotImplementedError) as error:  # pyarrow's own are among them
        raise InputError(str(path), f"cannot be read as a Parquet table ({first_line(error)})") from error
    return frame.rename(columns=str)


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:]
    if not last or last[0] not in (*SEPARATORS, *PARQUET):
        rule = f"must end in {', '.join((*SEPARATORS, *PARQUET))}; .csv and .tsv may be gzipped"
        raise InputError(str(path), rule, path.name)
    return last[0]


def _numbers(path: Path, series: pd.Series, name: str) -> Float32s:
    """Return a column as (N,) float32; raises InputError, with the first row that is at fault."""
    import pandas as pd

    _refuse_missing(path, series, name)
    values = series
    if pd.api.types.is_object_dtype(series) or pd.api.types.is_string_dtype(series):
        values = pd.to_numeric(series, errors="coerce")
        wrong = np.flatnonzero(values.isna().to_numpy())
    else:
        real = pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_complex_dtype(series)
        wrong = np.arange(0 if real else 1)
    if len(wrong):
        raise InputError(str(path), f"column {name!r} must hold numbers only", _at(series, wrong[0]))
    with np.errstate(over="ignore"):
        numbers: Float32s = values.to_numpy(dtype=np.float64).astype(np.float32)
    if len(infinite := np.flatnonzero(~np.isfinite(numbers))):
        rule = f"column {name!r} must be finite in float32"
        raise InputError(str(path), rule, _at(series, infinite[0]))
    return numbers


def _labels(path: Path, series: pd.Series, name: str) -> Array:
    """Return a column as (N,) int64 or text."""
    import pandas as pd

    _refuse_missing(path, series, name)
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(series.cat.categories.dtype)
    if pd.api.types.is_bool_dtype(series) or not pd.api.types.is_numeric_dtype(series):
        return np.array([str(value) for value in series])
    if pd.api.types.is_integer_dtype(series):
        return series.to_numpy(dtype=np.int64)
    values = series.to_numpy(dtype=np.float64)
    if len(wrong := np.flatnonzero(~np.isfinite(values) | (values != np.rint(values)))):
        raise InputError(str(path), f"column {name!r}: a label must be an integer or text", _at(series, wrong[0]))
    return values.astype(np.int64)


def _refuse_missing(path: Path, series: pd.Series, name: str) -> None:
    missing = np.flatnonzero(series.isna().to_numpy())
    if len(missing):
        rule = f"column {name!r} has missing values: {len(missing)} of {len(series)}, the first in row {missing[0] + 1}"
        raise InputError(str(path), rule)


def _at(series: pd.Series, position: int) -> str:
    return f"row={position + 1}, value={series.iloc[position]!s}"
