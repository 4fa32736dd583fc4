"""What Kubernetes says to a manifest, offline: the schemas of KubeRay's resource definitions, unknown fields refused.

KubeRay's definitions hold those of pods, services, volume claims and network rules, too; what stands around these in a
StatefulSet or a NetworkPolicy is written here.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.repository import SHARED

Schema = dict[str, Any]
VARIANTS = ("anyOf", "oneOf", "allOf", "not")


def schema_folder() -> Path:
    """Return METASEARCH_SCHEMAS, else shared/schemas beside the repository; it need not be there."""
    return Path(os.environ.get("METASEARCH_SCHEMAS") or SHARED / "schemas")


def problems(document: dict[str, Any], folder: Path) -> list[str]:
    """Return what is wrong with a manifest, a line each with its place; raises KeyError for an unknown kind."""
    schema = _schemas(folder)[document["kind"]]
    return [f"{error.json_path}: {error.message}" for error in _Validator(schema).iter_errors(document)]


def strict(schema: Any, *, inside_variant: bool = False) -> Any:
    """Return an OpenAPI schema as a JSON schema that refuses unknown fields, as `kubectl --validate=strict` does.

    Variants (anyOf, ...) only restrict what stands beside them, so that nothing is closed inside them.
    """
    if isinstance(schema, list):
        return [strict(each, inside_variant=inside_variant) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: strict(each, inside_variant=inside_variant) for name, each in value.items()}
        elif key in {"items", "additionalProperties", *VARIANTS}:
            made[key] = strict(value, inside_variant=inside_variant or key in VARIANTS)
        else:
            made[key] = value
    open_fields = "additionalProperties" in made or made.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in made and not open_fields and not inside_variant:
        made["additionalProperties"] = False
    if made.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    if made.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    return made


def _unique(validator: Any, kind: str, instance: Any, schema: Schema) -> Iterator[jsonschema.ValidationError]:
    """Refuse a repeated entry of a list that is a set, or a map by some of its fields."""
    if not isinstance(instance, list) or kind == "atomic":
        return
    keys = schema.get("x-kubernetes-list-map-keys", [])
    defaults = {name: each.get("default") for name, each in schema["items"].get("properties", {}).items()}
    seen = [tuple(e.get(k, defaults.get(k)) for k in keys) if kind == "map" else e for e in instance]
    if len(set(seen)) < len(seen):
        yield jsonschema.ValidationError(f"must not repeat {', '.join(keys) or 'a value'}: {seen}")


_Validator: Any = jsonschema.validators.extend(  # type: ignore[no-untyped-call]  # its stubs leave it out
    jsonschema.Draft202012Validator, {"x-kubernetes-list-type": _unique}
)


@functools.cache
def _schemas(folder: Path) -> dict[str, Schema]:
    """Return the strict schema of every kind of manifest that the project has."""
    cluster, job = (_definition(folder / f"{name}.crd.yaml") for name in ("rayclusters", "rayjobs"))
    head = cluster["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]
    pod = head["template"]
    metadata = pod["properties"]["metadata"]
    for definition in (cluster, job):
        definition["properties"]["metadata"] = metadata
        definition["required"] = ["apiVersion", "kind", "metadata", "spec"]
    service = head["headService"]
    volumes = pod["properties"]["spec"]["properties"]["volumes"]["items"]["properties"]
    claim = volumes["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]
    selector = claim["properties"]["selector"]
    rule = cluster["properties"]["spec"]["properties"]["networkPolicy"]["properties"]["head"]["properties"]
    stateful_set = {
        "serviceName": {"type": "string"},
        "replicas": {"type": "integer"},
        "selector": selector,
        "template": pod,
        "volumeClaimTemplates": {"type": "array", "items": _fields(metadata=metadata, spec=claim)},
    }
    network_policy = {
        "podSelector": selector,
        "policyTypes": {"type": "array", "items": {"enum": ["Ingress", "Egress"]}},
        "ingress": rule["ingressRules"],
    }
    schemas = {
        "RayCluster": cluster,
        "RayJob": job,
        "Service": _manifest("v1", metadata, service["properties"]["spec"]),
        "PersistentVolumeClaim": _manifest("v1", metadata, claim),
        "StatefulSet": _manifest("apps/v1", metadata, _fields(**stateful_set)),
        "NetworkPolicy": _manifest("networking.k8s.io/v1", metadata, _fields(**network_policy)),
    }
    return {kind: strict(schema) for kind, schema in schemas.items()}


def _definition(file: Path) -> Schema:
    """Return the schema of v1 in a custom resource definition."""
    loaded = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in loaded["spec"]["versions"] if v["name"] == "v1")
    found: Schema = schema
    found["properties"]["apiVersion"] = {"const": f"{loaded['spec']['group']}/v1"}
    return found


def _manifest(api_version: str, metadata: Schema, spec: Schema) -> Schema:
    return _fields(apiVersion={"const": api_version}, kind={"type": "string"}, metadata=metadata, spec=spec)


def _fields(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}
