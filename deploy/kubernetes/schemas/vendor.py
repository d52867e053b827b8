"""Makes strict JSON schemas of custom resource definitions: `python deploy/kubernetes/schemas/vendor.py CRD.yaml ...`.

The definitions are the upstream projects' own files, at the versions that README.md beside this file names. Of each,
the version that is stored is taken, without what says nothing of an object's shape (descriptions, rules in CEL, hints
for merging), and every object is closed: a field that the definition does not name is an error, as for
`kubectl apply --validate=strict`.

A pod template inside a definition is thousands of lines that Kubernetes' own schemas have, too. It is left open here;
the tests check templates as pods.
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
# Every object of Kubernetes has these; a definition says no more of metadata than that it is an object.
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
    """The schema of a definition's stored version, and the name of its file: group, version and kind."""
    spec = definition["spec"]
    (stored,) = [version for version in spec["versions"] if version["storage"]]
    group, version, kind = spec["group"], stored["name"], spec["names"]["kind"]
    schema = closed(stored["schema"]["openAPIV3Schema"])
    properties = schema["properties"]
    properties["apiVersion"], properties["kind"] = {"const": f"{group}/{version}"}, {"const": kind}
    properties["metadata"] = METADATA
    properties.pop("status", None)  # a controller's to write
    required = sorted({"apiVersion", "kind", "metadata", *schema.get("required", ())})
    return f"{group}_{version}_{kind}.json", {"$schema": DRAFT, **schema, "required": required}


def closed(schema: dict[str, Any], *, is_part: bool = False) -> dict[str, Any]:
    """The same as JSON schema, with every object closed.

    Args:
        schema: of OpenAPI, as definitions have it.
        is_part: whether it is one of several that hold at once (in anyOf and the like): those name only some fields.
    """
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], **{key: schema[key] for key in ("pattern",) if key in schema}}
    if _is_pod_template(schema):
        return {"type": "object", "$comment": "a pod template"}
    made = {key: value for key, value in schema.items() if key in KEPT}
    if "properties" in made:
        made["properties"] = {name: closed(one) for name, one in made["properties"].items()}
    if isinstance(made.get("items"), dict):
        made["items"] = closed(made["items"])
    if isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"] = closed(made["additionalProperties"])
    for key in ("oneOf", "anyOf", "allOf"):
        if key in made:
            made[key] = [closed(one, is_part=True) for one in made[key]]
    if "not" in made:
        made["not"] = closed(made["not"], is_part=True)
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or is_part
    if "properties" in made and "additionalProperties" not in made and not is_open:
        made["additionalProperties"] = False
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


def _is_pod_template(schema: dict[str, Any]) -> bool:
    """Whether it is a whole pod template: an object whose spec has containers."""
    spec = schema.get("properties", {}).get("spec", {})
    return "containers" in spec.get("properties", {}) and "initContainers" in spec.get("properties", {})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
