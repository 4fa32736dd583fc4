from __future__ import annotations

import json
from pathlib import Path

import pytest

from metasearch.errors import InputError, NotFoundError
from metasearch.teachers import TeacherMember, TeacherSource, teacher_from_flags

PLAIN = "convnet:width=24,depth=6"


@pytest.mark.parametrize(
    ("text", "member"),
    [
        (PLAIN, TeacherMember(PLAIN)),
        ("0.5*resnet18", TeacherMember("resnet18", share=0.5)),
        ("2*vit:width=64,depth=4", TeacherMember("vit:width=64,depth=4", share=2.0)),
        ("a.b:build", TeacherMember("a.b:build")),
        ("dir/x.onnx", TeacherMember("dir/x.onnx")),
    ],
)
def test_a_text_names_a_source_and_its_share(text: str, member: TeacherMember) -> None:
    assert TeacherMember.parse(text) == member


@pytest.mark.parametrize(
    "source",
    [
        TeacherSource((TeacherMember(PLAIN),)),
        TeacherSource((TeacherMember("x.onnx"),), normalisation="raw", labels_only=True),
        TeacherSource((TeacherMember("x.onnx"),), features=("/layer1/Relu_output_0", "flatten")),
        TeacherSource((TeacherMember("resnet18", "w.pt", 0.25), TeacherMember("a:b", "own")), "0.5/0.25", "logits"),
    ],
)
def test_a_source_survives_json(source: TeacherSource) -> None:
    assert TeacherSource.of(json.loads(json.dumps(source.plain()))) == source


def test_what_an_older_study_kept_of_a_source_names_no_features() -> None:
    plain = TeacherSource((TeacherMember(PLAIN),), mean="logits").plain()
    assert isinstance(plain, dict)
    del plain["features"]
    assert TeacherSource.of(plain).features == ()


def test_the_flag_names_features_from_the_first_to_the_last() -> None:
    source = teacher_from_flags(["x.onnx"], features="relu_1, /layer2/Relu_output_0,flatten")
    assert source is not None
    assert source.features == ("relu_1", "/layer2/Relu_output_0", "flatten")


def test_a_source_that_says_no_more_than_its_text_is_kept_as_text() -> None:
    assert TeacherSource.of(PLAIN).plain() == PLAIN


def test_a_title_names_members_shares_and_weights() -> None:
    source = teacher_from_flags(["3*resnet18", PLAIN], weights=["dir/w.pt", "-"])
    assert str(source) == f"3*resnet18 (w.pt) + {PLAIN}"
    assert str(TeacherSource.of(PLAIN)) == PLAIN


@pytest.mark.parametrize(
    "text",
    ["resnet", "vgg:width=3,depth=4", "convnet:width=0,depth=1", "vit", "x.tflite", "", "a.b:", "resnet18:", "0x"],
)
def test_an_unknown_spelling_is_told_all_there_are(text: str) -> None:
    with pytest.raises(InputError, match=r"^--teacher: must be one of convnet:.*resnet18.*FILE\.npz, got "):
        TeacherMember.parse(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"texts": ["0*resnet18"]}, r"--teacher: must have a share above 0"),
        ({"texts": ["x.onnx"], "weights": ["w.pt"]}, r"--teacher-weights: must be - for a file"),
        ({"texts": ["resnet18"], "weights": ["w.bin"]}, r"--teacher-weights: must end in \.safetensors, \.pt, \.pth"),
        ({"texts": ["resnet18"], "weights": ["own"]}, r"--teacher-weights: can be own for package\.module:function"),
        ({"texts": ["resnet18"] * 2, "weights": ["w.pt"]}, r"--teacher-weights: must be given 2 times.*got 1"),
        ({"texts": ["resnet18"], "mean": "median"}, r"--teacher-mean: must be one of probabilities, logits"),
        ({"texts": ["resnet18"], "normalisation": "0.5"}, r"--teacher-normalisation: must be one of task"),
        ({"texts": ["resnet18"], "normalisation": "0.5,0.5/1"}, r"--teacher-normalisation: must be one of task"),
        ({"texts": ["resnet18"], "normalisation": "0.5/0"}, r"--teacher-normalisation: must be one of task"),
        ({"texts": ["resnet18"], "normalisation": "nan/1"}, r"--teacher-normalisation: must be one of task"),
        ({"texts": ["resnet18"], "features": "a,,b"}, r"--teacher-features: must be NAME,NAME,.* once, got 'a,,b'"),
        ({"texts": ["resnet18"], "features": "a,a"}, r"--teacher-features: must be NAME,NAME,.* once, got 'a,a'"),
        ({"texts": ["resnet18"], "features": ""}, r"--teacher-features: must be NAME,NAME,.* once, got ''"),
        (
            {"texts": ["a:b"] * 2, "features": "a"},
            r"--teacher-features: can be given for one --teacher only, got teachers=2",
        ),
        (
            {"texts": ["x.npz"], "features": "a"},
            r"--teacher-features: cannot be given for a file of logits, got 'x\.npz'",
        ),
        (
            {"texts": ["a:b"], "features": "a", "labels_only": True},
            r"--teacher-features: cannot .*--teacher-labels-only",
        ),
        ({"texts": [], "features": "a"}, r"--teacher: must be given with the other flags"),
        ({"texts": [], "labels_only": True}, r"--teacher: must be given with the other flags"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=rf"^{message}"):
        teacher_from_flags(**flags)  # type: ignore[arg-type]  # the table names real flags


def test_without_a_teacher_there_is_none() -> None:
    assert teacher_from_flags([]) is None


def test_paths_become_absolute_and_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("w.pt", "x.onnx"):
        (tmp_path / name).touch()
    source = teacher_from_flags(["resnet18", "x.onnx", "a:b"], weights=["w.pt", "-", "own"])
    assert source is not None
    members = source.absolute().members
    assert (members[0].text, members[0].weights) == ("resnet18", str(tmp_path / "w.pt"))
    assert members[1].text == str(tmp_path / "x.onnx")
    assert members[2] == TeacherMember("a:b", "own")
    with pytest.raises(NotFoundError, match=r"^teacher y\.pt2: there is no such file; looked at /"):
        TeacherSource.of("y.pt2").absolute()
