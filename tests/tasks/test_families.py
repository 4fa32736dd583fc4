from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from metasearch.errors import InputError, NotFoundError
from metasearch.tasks import TaskSource, load_task
from metasearch.tasks.families import Family, Member, load_family, parse_family, read_mapping


def save_numbered(path: Path, *, count: int = 60, classes: int = 6) -> None:
    """Write vectors (n, n % classes) with labels n % classes."""
    numbers = np.arange(count)
    np.savez(path, x=np.stack([numbers, numbers % classes], axis=1).astype(np.float32), y=numbers % classes)


tasks = st.sampled_from(["digits", "usps", "npz:a.npz", "npz:a.npz,b.npz", "folder:some/dir@home/x", "table:t.csv#y"])
rules = st.sampled_from(
    [("", ""), ("groups", ""), ("groups", "s.csv"), ("classes", "5"), ("random", "3"), ("column", "w")]
)


@given(st.lists(st.builds(lambda task, rule: Member(task, *rule), tasks, rules), min_size=1, max_size=4))
def test_a_family_reads_back_as_it_was_written(members: list[Member]) -> None:
    family = Family(tuple(members))
    assert parse_family(str(family)) == family


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "omniglot@alphabet",
            r"family: after the @ must stand one of groups\[:FILE\], classes:SIZE, .* got 'omniglot@",
        ),
        ("omniglot@group", r"did you mean groups\?"),
        ("digits@classes", r"family: must be spelled TASK@RULE"),
        ("digits@classes:", r"family: must be spelled TASK@RULE"),
        ("digits@classes:two", r"family: classes:SIZE needs a whole number, got 'digits@classes:two'"),
        ("digits@random:-1", r"family: random:COUNT needs a whole number"),
        ("@classes:2", r"family: must be spelled TASK@RULE"),
        ("digits@classes:1", r"classes: the classes of a group must be at least 2"),
        ("digits@random:6", r"random: 10 classes make at least 1 and at most 5 groups"),
        ("digits@groups", r"digits@groups: a class name must say its group before a /"),
        ("digits", r"family digits: needs at least two tasks, got \['digits'\]"),
        ("digits@classes:10", r"family digits@classes:10: needs at least two tasks"),
        ("digit@classes:2", r"task: must be one of digits, .*did you mean digits\?"),
    ],
)
def test_a_family_that_is_none_is_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load_family(text)
    assert "\n" not in str(raised.value)


def test_several_tasks_are_a_family(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        save_numbered(tmp_path / name)
    source = TaskSource("", data_root=str(tmp_path))
    domains = load_family("npz:a.npz,npz:b.npz@classes:3", source=source)
    assert [domain.name for domain in domains] == [
        "npz:a.npz",
        "npz:b.npz@classes:3#0..2",
        "npz:b.npz@classes:3#3..5",
    ]
    assert domains[0].task().fingerprint == load_task(TaskSource("npz:a.npz", data_root=str(tmp_path))).fingerprint


def test_tasks_of_different_shapes_are_one_line(tmp_path: Path) -> None:
    save_numbered(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"its tasks must have one input shape; an image_size makes"):
        load_family("digits,npz:a.npz", source=TaskSource("", data_root=str(tmp_path)))


@pytest.mark.parametrize("text", ["digits@classes:3", "digits@random:4"])
def test_each_domain_is_a_task_by_its_name(text: str) -> None:
    """The episodes of meta-learning and the tasks of a search come from the same partition."""
    for domain in load_family(text, source=TaskSource("", seed=3)):
        task = load_task(TaskSource(domain.name, seed=3))
        assert task.fingerprint == domain.fingerprint
        assert torch.equal(task.train.inputs, domain.task().train.inputs)
        assert task.name == domain.name


def test_a_domain_takes_the_options_of_a_task() -> None:
    task = load_task(TaskSource("digits@classes:5#0..4", max_train=10, image_size=16, augment="shift"))
    assert task.train.inputs.shape == (10, 1, 16, 16)
    assert Counter(task.train.labels.tolist()) == dict.fromkeys(range(5), 2)
    assert task.augmentation.shift == 1


def test_a_domain_that_is_not_there_is_told_with_its_neighbours() -> None:
    with pytest.raises(
        NotFoundError, match=r"digits@classes:5#0\.\.5: no such domain \(did you mean digits@classes:5#0"
    ):
        load_task("digits@classes:5#0..5")


@pytest.mark.parametrize("layout", ["json", "yaml", "csv", "lists"])
def test_groups_come_from_the_users_own_file(tmp_path: Path, layout: str) -> None:
    groups = {str(digit): "round" if digit in (0, 3, 6, 8, 9) else "straight" for digit in range(10)}
    path = tmp_path / f"shapes.{'json' if layout == 'lists' else layout}"
    if layout == "csv":
        path.write_text("".join(f"{name},{group}\n" for name, group in groups.items()))
    elif layout == "yaml":
        path.write_text(yaml.safe_dump({int(name): group for name, group in groups.items()}))
    elif layout == "json":
        path.write_text(json.dumps(groups))
    else:
        path.write_text(json.dumps({"round": [0, 3, 6, 8, 9], "straight": [1, 2, 4, 5, 7]}))
    domains = load_family(f"digits@groups:{path}")
    assert {domain.name.rpartition("#")[2]: domain.class_names for domain in domains} == {
        "round": ("0", "3", "6", "8", "9"),
        "straight": ("1", "2", "4", "5", "7"),
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.json", "{", "cannot be read as a mapping of class to group"),
        ("s.json", "[1, 2]", "must be a mapping of class to group, or rows of two, got 'list'"),
        ("s.yaml", "a: [", "cannot be read as a mapping of class to group"),
        ("s.csv", "a,b,c\n", "must be a mapping of class to group, or rows of two"),
        ("s.csv", "a,x\na,y\n", r"gives a class twice, got \['a'\]"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        read_mapping(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_column_of_a_file_follows_the_order_of_the_source(tmp_path: Path) -> None:
    save_numbered(tmp_path / "a.npz")
    (tmp_path / "writer.txt").write_text("".join(f"writer {number // 20}\n" for number in range(60)))
    source = TaskSource("", data_root=str(tmp_path))
    domains = load_family("npz:a.npz@column:writer.txt", source=source)
    assert [domain.name.rpartition("#")[2] for domain in domains] == ["writer 0", "writer 1", "writer 2"]
    for index, domain in enumerate(domains):
        assert sorted(domain.inputs[:, 0].tolist()) == list(range(20 * index, 20 * index + 20))
        assert torch.equal(domain.inputs[:, 1].long(), domain.labels)


def test_a_column_of_another_length_is_one_line(tmp_path: Path) -> None:
    save_numbered(tmp_path / "a.npz")
    (tmp_path / "writer.txt").write_text("one\n")
    with pytest.raises(InputError, match=r"writer\.txt: must have one line for each of the 60 examples, got 1"):
        load_family("npz:a.npz@column:writer.txt", source=TaskSource("", data_root=str(tmp_path)))


def test_a_column_of_a_table_makes_domains_and_is_no_input(tmp_path: Path) -> None:
    rows = [f"{number},{number % 3},{number % 2}\n" for number in range(60)]
    (tmp_path / "t.csv").write_text("".join(["value,city,label\n", *rows]))
    domains = load_family("table:t.csv@column:city", source=TaskSource("", data_root=str(tmp_path)))
    assert [domain.name for domain in domains] == [f"table:t.csv@column:city#{city}" for city in range(3)]
    for city, domain in enumerate(domains):
        assert domain.input_shape == (1,)
        assert sorted(domain.inputs[:, 0].tolist()) == list(range(city, 60, 3))
        assert len(domain.normalisation.scale) == 1


def test_paths_are_made_absolute_for_another_working_directory(tmp_path: Path) -> None:
    save_numbered(tmp_path / "a.npz")
    (tmp_path / "s.json").write_text(json.dumps({str(index): str(index % 2) for index in range(6)}))
    text = TaskSource("npz:a.npz@groups:s.json#1", data_root=str(tmp_path)).absolute().text
    assert text == f"npz:{tmp_path}/a.npz@groups:{tmp_path}/s.json#1"
    assert load_task(text).class_names == ("1", "3", "5")


@pytest.mark.slow
def test_real_omniglot_falls_into_its_alphabets(shared_data: Path) -> None:
    source = TaskSource("", data_root=str(shared_data / "Omniglot"), image_size=28)
    domains = load_family("omniglot@groups", source=source)
    sizes = {domain.name.rpartition("#")[2]: len(domain.class_names) for domain in domains}
    assert sizes["Greek"] == 24
    assert sizes["Latin"] == 26
    assert sum(sizes.values()) == 136 + 156 - 24 - 26
    assert all(len(rows) == 20 for domain in domains for rows in domain.rows_of_class)
