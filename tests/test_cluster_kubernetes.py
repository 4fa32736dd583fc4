"""The manifests of cluster/kuberay against KubeRay's schemas, and against each other."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes_schema import problems, schema_folder, strict

CLUSTER = Path(__file__).parent.parent / "cluster"
KUBERAY = CLUSTER / "kuberay"


def manifests() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(KUBERAY.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document["kind"] != "Kustomization":
                yield path, document


def manifest(kind: str) -> dict[str, Any]:
    (found,) = (document for _, document in manifests() if document["kind"] == kind)
    return found


def values(tree: Any, key: str) -> Iterator[Any]:
    """Yield whatever stands under `key`, anywhere in nested mappings and lists."""
    if isinstance(tree, dict):
        if key in tree:
            yield tree[key]
        tree = list(tree.values())
    if isinstance(tree, list):
        for each in tree:
            yield from values(each, key)


@pytest.fixture(scope="session")
def schemas() -> Path:
    folder = schema_folder()
    if not (folder / "rayclusters.crd.yaml").exists():
        pytest.skip(f"no KubeRay schemas: METASEARCH_SCHEMAS is not set and {folder} has none")
    return folder


def test_kubernetes_accepts_each_manifest(schemas: Path) -> None:
    found = {f"{path.name} {document['kind']}": problems(document, schemas) for path, document in manifests()}
    assert {place: wrong for place, wrong in found.items() if wrong} == {}
    assert {key.split()[1] for key in found} >= {"RayCluster", "RayJob", "StatefulSet", "Service", "NetworkPolicy"}


@pytest.mark.parametrize(
    ("kind", "path", "misspelt"),
    [
        ("RayCluster", "spec.headGroupSpec", "rayStartParam"),
        ("RayCluster", "spec.workerGroupSpecs.0.template.spec.containers.0", "resource"),
        ("RayCluster", "spec.authOptions", "token"),
        ("RayJob", "spec", "ttlSecondsAfterFinish"),
        ("RayJob", "spec.rayClusterSpec.headGroupSpec.template.spec.securityContext", "runAsNonroot"),
        ("StatefulSet", "spec", "replica"),
        ("StatefulSet", "spec.template.spec.containers.0.readinessProbe", "periodSecond"),
        ("StatefulSet", "spec.volumeClaimTemplates.0.spec", "storageClass"),
        ("Service", "spec.ports.0", "targetport"),
        ("PersistentVolumeClaim", "spec.resources", "request"),
        ("NetworkPolicy", "spec.ingress.0", "form"),
        ("NetworkPolicy", "metadata", "label"),
    ],
)
def test_a_misspelt_field_is_refused(schemas: Path, kind: str, path: str, misspelt: str) -> None:
    document = copy.deepcopy(manifest(kind))
    node: Any = document
    for step in path.split("."):
        node = node[int(step)] if step.isdecimal() else node[step]
    node[misspelt] = "1"
    assert any(misspelt in problem for problem in problems(document, schemas))


def test_a_value_of_the_wrong_type_and_a_repeated_entry_are_refused(schemas: Path) -> None:
    document = copy.deepcopy(manifest("RayCluster"))
    (head,) = document["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    head["ports"].append(dict(head["ports"][0]))
    document["spec"]["workerGroupSpecs"][0]["maxReplicas"] = "eight"
    found = "\n".join(problems(document, schemas))
    assert "ports: must not repeat" in found
    assert "maxReplicas: 'eight' is not of type 'integer'" in found


def test_fields_that_kubernetes_leaves_open_stay_open() -> None:
    closed = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert strict(closed)["additionalProperties"] is False
    assert "additionalProperties" not in strict(closed | {"x-kubernetes-preserve-unknown-fields": True})
    assert strict(closed | {"additionalProperties": {"type": "string"}})["additionalProperties"] == {"type": "string"}
    assert "additionalProperties" not in strict({"anyOf": [closed]})["anyOf"][0]
    assert strict({"x-kubernetes-int-or-string": True})["type"] == ["integer", "string"]


def test_job_and_cluster_have_one_specification() -> None:
    assert manifest("RayJob")["spec"]["rayClusterSpec"] == manifest("RayCluster")["spec"]


def test_pods_run_as_nobody_with_bounded_memory() -> None:
    templates = [t for _, d in manifests() for t in values(d, "template")]
    assert len(templates) == 7  # PostgreSQL's, and three of Ray's in each of two manifests
    for template in templates:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= {v["name"] for v in pod["volumes"]} | {
                "data"
            }


def test_ray_on_kubernetes_has_a_head_without_trials_a_token_and_bounds() -> None:
    spec = manifest("RayCluster")["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["authOptions"]["mode"] == "token"
    assert spec["enableInTreeAutoscaling"] is True
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 < group["maxReplicas"] <= 12


def test_what_manifests_refer_to_is_made_by_another_or_by_the_guide() -> None:
    documents = [document for _, document in manifests()]
    names = {(d["kind"], d["metadata"]["name"]) for d in documents}
    for claim in values(documents, "claimName"):
        assert ("PersistentVolumeClaim", claim) in names
    guide = re.sub(r"\\\n\s*", "", (CLUSTER / "README.md").read_text(encoding="utf-8"))
    wanted = {(ref["name"], ref["key"]) for ref in values(documents, "secretKeyRef")}
    wanted |= {(name, "auth_token") for options in values(documents, "authOptions") for name in [options["secretName"]]}
    for secret, key in wanted:
        assert re.search(rf"create secret generic {secret} --from-file={key}=/dev/stdin", guide)
    assert set(values(documents, "secretName")) <= {secret for secret, _ in wanted}
    database, service = manifest("StatefulSet")["spec"], manifest("Service")
    assert database["serviceName"] == service["metadata"]["name"]
    labels = database["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == database["selector"]["matchLabels"] == labels
    (url,) = {e["value"] for env in values(documents, "env") for e in env if e["name"] == "METASEARCH_STORAGE"}
    assert f"@{service['metadata']['name']}/" in url
    (container,) = database["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"][0] == "pg_isready"


@pytest.mark.parametrize("folder", ["services", "cluster", "job"])
def test_kustomize_builds_each_folder(folder: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl")
    built = subprocess.run([kubectl, "kustomize", KUBERAY / folder], capture_output=True, text=True, check=True)
    kinds = {document["kind"] for document in yaml.safe_load_all(built.stdout)}
    assert kinds >= {"Service", "StatefulSet", "PersistentVolumeClaim", "NetworkPolicy"}
    assert kinds & {"RayCluster", "RayJob"} == {"cluster": {"RayCluster"}, "job": {"RayJob"}}.get(folder, set())


def test_kustomizations_name_files_that_are_there() -> None:
    for path in KUBERAY.rglob("kustomization.yaml"):
        for resource in yaml.safe_load(path.read_text(encoding="utf-8"))["resources"]:
            assert (path.parent / resource).exists()
