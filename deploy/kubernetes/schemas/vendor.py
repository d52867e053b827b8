"""Makes strict JSON schemas of custom resource definitions: `python deploy/kubernetes/schemas/vendor.py CRD.yaml ...`.

The definitions are the upstream projects' files, at the versions in this folder's README.md. The schema is that of
the storage version, without keys that do not constrain an object's shape (descriptions, CEL rules, merge hints). Every
object is closed: a field that is not defined is an error, as with `kubectl apply --validate=strict`.

Pod templates inside a definition are left open: they have thousands of lines, and the tests check them as pods by
Kubernetes' own schemas.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
DRAFT = "https://json-schema.org/draft/2020-12/schema"
KEPT = {
    *("type", "properties", "required", "items", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength"),
    *("minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "additionalProperties"),
    *("oneOf", "anyOf", "allOf", "not", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
# The same for every Kubernetes object; definitions only say that metadata is an object.
METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253},
        "namespace": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "additionalProperties": False,
    "required": ["name"],
}


def main(paths: list[str]) -> int:
    """Write a schema for each definition; the exit status."""
    for path in paths:
        definition = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        name, schema = strict_schema(definition)
        (FOLDER / name).write_text(json.dumps(schema, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{name}: {(FOLDER / name).stat().st_size:,} bytes")
    return 0


def strict_schema(definition: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """File name (group, version, kind) and schema of a definition's storage version."""
    spec = definition["spec"]
    (stored,) = [version for version in spec["versions"] if version["storage"]]
    group, version, kind = spec["group"], stored["name"], spec["names"]["kind"]
    schema = closed(stored["schema"]["openAPIV3Schema"])
    properties = schema["properties"]
    properties["apiVersion"], properties["kind"] = {"const": f"{group}/{version}"}, {"const": kind}
    properties["metadata"] = METADATA
    properties.pop("status", None)  # written by a controller
    required = sorted({"apiVersion", "kind", "metadata", *schema.get("required", ())})
    return f"{group}_{version}_{kind}.json", {"$schema": DRAFT, **schema, "required": required}


def closed(schema: dict[str, Any], *, is_part: bool = False) -> dict[str, Any]:
    """An OpenAPI schema as JSON schema, with every object closed.

    Args:
        schema: the OpenAPI schema.
        is_part: whether it is a part of anyOf, allOf or the like, which defines only some fields and stays open.
    """
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], **{key: schema[key] for key in ("pattern",) if key in schema}}
    if _is_pod_template(schema):
        return {"type": "object", "$comment": "a pod template"}
    kept = {key: value for key, value in schema.items() if key in KEPT}
    if "properties" in kept:
        kept["properties"] = {name: closed(part) for name, part in kept["properties"].items()}
    if isinstance(kept.get("items"), dict):
        kept["items"] = closed(kept["items"])
    if isinstance(kept.get("additionalProperties"), dict):
        kept["additionalProperties"] = closed(kept["additionalProperties"])
    for key in ("oneOf", "anyOf", "allOf"):
        if key in kept:
            kept[key] = [closed(part, is_part=True) for part in kept[key]]
    if "not" in kept:
        kept["not"] = closed(kept["not"], is_part=True)
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or is_part
    if "properties" in kept and "additionalProperties" not in kept and not is_open:
        kept["additionalProperties"] = False
    if schema.get("nullable") and isinstance(kept.get("type"), str):
        kept["type"] = [kept["type"], "null"]
    return kept


def _is_pod_template(schema: dict[str, Any]) -> bool:
    """Whether a schema is a pod template: an object whose spec has containers."""
    spec = schema.get("properties", {}).get("spec", {})
    return "containers" in spec.get("properties", {}) and "initContainers" in spec.get("properties", {})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
