from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metasearch.errors import InputError
from metasearch.tasks.domains import (
    Domain,
    cut_by_class,
    cut_by_example,
    groups_of_size,
    joined,
    named_groups,
    random_groups,
    split_domains,
    whole_domain,
)
from metasearch.tasks.task import Normalisation
from tests.synthetic import synthetic_task

NAMES = ("Greek/alpha", "Greek/beta", "Latin/a", "Latin/b", "Latin/c", "Korean/x", "Korean/y")


def numbered_domain(class_names: tuple[str, ...] = NAMES, *, per_class: int = 6) -> Domain:
    """Return vectors whose first value is their class and whose second is their number, in mixed order."""
    classes = len(class_names)
    count = classes * per_class
    labels = (torch.arange(count) * 5) % classes
    inputs = torch.stack([labels.float(), torch.arange(count).float()], dim=1)
    splits = torch.arange(count) // classes % 3
    return Domain("numbers", inputs, labels, class_names, splits, Normalisation((1.0, 1.0), (0.0, 0.0)))


def examples(domain: Domain) -> set[tuple[str, float]]:
    """Return the class name and the number of every example."""
    return {
        (domain.class_names[label], number)
        for label, number in zip(domain.labels.tolist(), domain.inputs[:, 1].tolist(), strict=True)
    }


class_names = st.lists(st.text("abc/", min_size=1, max_size=4), min_size=4, max_size=12, unique=True).map(tuple)


@given(names=class_names, size=st.integers(2, 12))
def test_groups_of_a_size_hold_every_class_once_in_order(names: tuple[str, ...], size: int) -> None:
    if size > len(names):
        with pytest.raises(InputError, match="classes: the classes of a group must be at least 2"):
            groups_of_size(names, size)
        return
    groups = list(groups_of_size(names, size).values())
    assert [position for group in groups for position in group] == list(range(len(names)))
    assert all(len(group) == size for group in groups[:-1])
    assert 2 <= len(groups[-1]) <= size + 1


@given(names=class_names, count=st.integers(1, 6), seed=st.integers(0, 5))
def test_random_groups_hold_every_class_once_and_are_even(names: tuple[str, ...], count: int, seed: int) -> None:
    if count > len(names) // 2:
        with pytest.raises(InputError, match="random: "):
            random_groups(names, count, seed=seed)
        return
    groups = random_groups(names, count, seed=seed)
    assert sorted(position for group in groups.values() for position in group) == list(range(len(names)))
    sizes = [len(group) for group in groups.values()]
    assert max(sizes) - min(sizes) <= 1
    assert groups == random_groups(names, count, seed=seed)


def test_random_groups_depend_on_the_seed() -> None:
    names = tuple(map(str, range(40)))
    assert random_groups(names, 4, seed=0) != random_groups(names, 4, seed=1)


def test_groups_are_what_stands_before_the_slash() -> None:
    assert named_groups(NAMES) == {"Greek": [0, 1], "Korean": [5, 6], "Latin": [2, 3, 4]}


def test_a_class_without_a_group_is_named() -> None:
    with pytest.raises(InputError, match=r"groups: a class name must say its group before a /.*got \['beta'\]"):
        named_groups(["Greek/alpha", "beta"])
    with pytest.raises(InputError, match=r"s\.csv: must give a group to every class; those without, got \['b'\]"):
        named_groups(["a", "b"], {"a": "A"}, place="s.csv")


def test_a_cut_by_class_keeps_every_example_once_with_its_class() -> None:
    whole = numbered_domain()
    domains = cut_by_class(whole, named_groups(NAMES))
    assert [domain.name for domain in domains] == ["numbers#Greek", "numbers#Korean", "numbers#Latin"]
    assert set.union(*map(examples, domains)) == examples(whole)
    assert sum(len(domain.labels) for domain in domains) == len(whole.labels)
    for domain in domains:
        assert set(domain.labels.tolist()) == set(range(len(domain.class_names)))


def test_a_domain_keeps_the_teachers_words_on_its_own_classes() -> None:
    whole = numbered_domain()
    # the logit of class k on example n is 100 n + k
    logits = 100 * torch.arange(len(whole.labels))[:, None] + torch.arange(len(NAMES))
    latin = cut_by_class(replace(whole, teacher_logits=logits.float()), {"Latin": [2, 3, 4]})[0]
    assert latin.teacher_logits is not None
    expected = 100 * latin.inputs[:, 1:] + torch.tensor([2, 3, 4])
    assert torch.equal(latin.teacher_logits, expected)


def test_a_cut_by_example_shares_classes_and_leaves_absent_ones_out() -> None:
    whole = numbered_domain()
    writer = ["Anna" if number % 2 else "Ben" for number in range(len(whole.labels))]
    writer[0] = "Ben"
    anna, ben = cut_by_example(whole, writer)
    assert examples(anna) | examples(ben) == examples(whole)
    assert examples(anna).isdisjoint(examples(ben))
    few = cut_by_example(whole, ["x" if label < 2 else "y" for label in whole.labels.tolist()])
    assert few[0].class_names == NAMES[:2]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a"], r"domain numbers: must give one group to each of the 42 examples, got 1"),
        (["a"] * 41 + ["b"], r"domain numbers#b: needs at least two classes, got 1"),
    ],
)
def test_groups_of_examples_that_make_no_task_are_refused(groups: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cut_by_example(numbered_domain(), groups)


def test_a_domain_is_a_task_with_the_splits_of_its_source() -> None:
    source = synthetic_task()
    domain = cut_by_class(whole_domain(source), {"ends": [0, 2]})[0]
    task = domain.task()
    for name in ("train", "validation", "test"):
        split, given_split = getattr(task, name), getattr(source, name)
        kept = given_split.labels != 1
        assert torch.equal(split.inputs, given_split.inputs[kept])
        assert torch.equal(split.labels, given_split.labels[kept] // 2)
    assert task.class_names == ("class 0", "class 2")
    assert task.normalisation == source.normalisation
    assert task.fingerprint == domain.fingerprint


def test_the_whole_of_a_task_is_the_same_task() -> None:
    source = synthetic_task()
    assert whole_domain(source).task().fingerprint == source.fingerprint


def test_joined_domains_have_all_their_classes() -> None:
    whole = numbered_domain()
    domains = cut_by_class(whole, named_groups(NAMES))
    together = joined(domains)
    assert examples(together) == examples(whole)
    assert len(together.class_names) == len(NAMES)
    with pytest.raises(InputError, match="one input shape and one normalisation"):
        joined([whole, replace(whole, normalisation=Normalisation((2.0, 2.0), (0.0, 0.0)))])


@given(count=st.integers(3, 30), seed=st.integers(0, 3))
def test_a_split_over_domains_has_every_class_in_one_part(count: int, seed: int) -> None:
    names = tuple(map(str, range(2 * count)))
    domains = cut_by_class(numbered_domain(names, per_class=1), groups_of_size(names, 2))
    split = split_domains(domains, seed=seed)
    parts = [
        {name for domain in part for name in domain.class_names} for part in (split.train, split.validation, split.test)
    ]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(names)


def test_a_split_over_domains_depends_on_the_seed_alone() -> None:
    names = tuple(map(str, range(40)))
    domains = cut_by_class(numbered_domain(names, per_class=1), groups_of_size(names, 2))
    tests = [[domain.name for domain in split_domains(domains, seed=seed).test] for seed in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]


def test_two_domains_cannot_be_split() -> None:
    domains = cut_by_class(numbered_domain(), {"a": [0, 1], "b": [2, 3]})
    with pytest.raises(InputError, match="family: needs at least three tasks"):
        split_domains(domains, seed=0)


def test_a_teacher_of_other_classes_is_refused() -> None:
    with pytest.raises(InputError, match=r"the teacher's logits must have shape \(42, 7\), got shape=\(42, 3\)"):
        replace(numbered_domain(), teacher_logits=torch.zeros(42, 3))
