"""Plain sentences on what a check of a task's data found: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metasearch.tasks.findings import Conflicts, Constants, Repeats, TaskCheck

IMBALANCED = 3.0
"""From this ratio of the largest to the smallest class on, plain accuracy is worth a warning."""


def advice_on(found: TaskCheck) -> Iterable[str]:
    """Yield one sentence for each finding that a user should act on, the gravest first."""
    noun = "image" if len(found.input_shape) == 3 else "vector"
    if found.corrupt_count:
        files, names = _number(found.corrupt_count, "image file"), _some(found.corrupt, of=found.corrupt_count)
        yield f"{files} cannot be read ({names}): repair or remove them, or leave them out with --skip-corrupt"
    yield from (_leak(repeats, noun) for repeats in found.repeats if repeats.split != repeats.of)
    if found.conflicts is not None:
        yield _conflict(found.conflicts, noun)
    yield from (_repeat(repeats, noun) for repeats in found.repeats if repeats.split == repeats.of)
    yield from map(_constant, found.constants)
    if constant := found.constant_features:
        features, verb = _number(len(constant), "feature"), "changes" if len(constant) == 1 else "change"
        yield f"{features} never {verb} in train ({_some(constant)}): leave out what is constant"
    for split, counts in found.counts.items():
        if absent := [name for name, count in counts.items() if count == 0]:
            yield f"the {split} split has no example of {_number(len(absent), 'class')} ({_some(absent)})"
    if found.imbalance >= IMBALANCED:
        yield _imbalance(found)


def _leak(repeats: Repeats, noun: str) -> str:
    examples, one = _number(repeats.count, f"{repeats.split} {noun}"), repeats.count == 1
    return (
        f"{examples} {'is' if one else 'are'} also in {repeats.of} ({_where(repeats)}): "
        f"{repeats.split} accuracy will be too high; remove {'it' if one else 'them'}"
    )


def _repeat(repeats: Repeats, noun: str) -> str:
    examples, one = _number(repeats.count, f"{repeats.split} {noun}"), repeats.count == 1
    return (
        f"{examples} {'repeats another' if one else 'repeat others'} of the split ({_where(repeats)}): "
        f"{'it counts' if one else 'they count'} more than once"
    )


def _where(repeats: Repeats) -> str:
    here, there = repeats.example
    return f"{repeats.split} {here} is {repeats.of} {there}"


def _conflict(conflicts: Conflicts, noun: str) -> str:
    (split, position, name), (other_split, other_position, other_name) = conflicts.example
    return (
        f"{_number(conflicts.count, noun)} {'bears' if conflicts.count == 1 else 'bear'} more than one label "
        f"({split} {position} is {name}, {other_split} {other_position} the same but {other_name}): "
        "no network can be right on all of them; correct the labels"
    )


def _constant(constants: Constants) -> str:
    images, one = _number(constants.count, f"{constants.split} image"), constants.count == 1
    return (
        f"{images} {'is' if one else 'are'} of one colour only ({constants.split} {constants.example}): "
        f"look whether {'it shows' if one else 'they show'} anything"
    )


def _imbalance(found: TaskCheck) -> str:
    counts = found.counts["train"]
    largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    return (
        f"the largest class has {found.imbalance:.1f} times the train examples of the smallest "
        f"({largest} {counts[largest]}, {smallest} {counts[smallest]}): "
        "accuracy hides the small classes; search with --objective val_balanced_accuracy"
    )


def _number(count: int, noun: str) -> str:
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith('s') else 's'}"


def _some(names: Sequence[str], *, of: int | None = None) -> str:
    """Return the first names of a list; `of` is the length of the whole, where names are its beginning."""
    return ", ".join(names[:5]) + (", ..." if (of or len(names)) > 5 else "")
