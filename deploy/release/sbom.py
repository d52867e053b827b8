"""`make sbom`: the Python packages of an image as a CycloneDX bill of materials in dist/.

    python deploy/release/sbom.py server          packages of deploy/Dockerfile's stage `server`
    python deploy/release/sbom.py client
    python deploy/release/sbom.py server --python /opt/gradellm/bin/python      packages of an existing environment

Installs the wheel with the Dockerfile's extras and the pinned versions into a fresh environment, unless --python names
one, such as an image's. cyclonedx-bom lists its packages and validates the document; this script then checks that every
package has a name, a version, a package URL and a licence, and that versions are the pinned ones. Licences are printed
as a table. Debian packages of the base image are not included: use an image scanner (docs/upgrading.md).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import distributions
from distributions import ROOT

CONSTRAINTS = ROOT / "deploy" / "constraints.txt"
EXTRAS = {"server": "EXTRAS", "client": "CLIENT_EXTRAS"}  # by stage: the Dockerfile's ARG with its extras
SPECIFICATION = "1.6"
# Licences of packages whose metadata has only a legacy free-text field, which cyclonedx-bom ignores; taken from their
# licence files.
LICENCES = {"protobuf": "BSD-3-Clause", "torchao": "BSD-3-Clause", "transformers": "Apache-2.0"}


def main() -> int:
    """Write a bill of materials; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("image", choices=list(EXTRAS))
    parser.add_argument("--python", help="Python of an existing environment (default: make a fresh one)")
    parser.add_argument("--output", type=Path, help="default: dist/gradellm-VERSION-IMAGE.cdx.json")
    options = parser.parse_args()
    output = options.output or ROOT / "dist" / f"gradellm-{distributions.version()}-{options.image}.cdx.json"
    output.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gradellm-sbom-") as scratch:
        python = options.python or _environment(options.image, Path(scratch))
        document = bill(python)
    if faults := faults_of(document, pinned(CONSTRAINTS.read_text())):
        print("error: " + "\n".join(faults), file=sys.stderr)
        return 1
    output.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    print(licence_table(document))
    print(f"{len(document['components'])} packages, CycloneDX {SPECIFICATION}: {output}")
    return 0


def image_extras(image: str, dockerfile: str) -> str:
    """The extras that a Dockerfile installs in an image.

    Raises:
        ValueError: if it has no ARG for them.
    """
    found = re.search(rf"^ARG {EXTRAS[image]}=(\S+)$", dockerfile, re.MULTILINE)
    if found is None:
        raise ValueError(f"deploy/Dockerfile has no line ARG {EXTRAS[image]}=... with the image's extras")
    return found[1]


def bill(python: str) -> dict[str, Any]:
    """The CycloneDX document of an environment, validated against the schema; gradellm itself is its subject."""
    tool, project = str(Path(sys.executable).with_name("cyclonedx-py")), str(ROOT / "pyproject.toml")
    options = ["--spec-version", SPECIFICATION, "--output-reproducible", "--validate", "--output-format", "JSON"]
    listing = subprocess.run(  # noqa: S603  (a tool of this environment, without a shell)
        [tool, "environment", "--pyproject", project, *options, python],
        env={**os.environ, "SOURCE_DATE_EPOCH": distributions.commit_time()},
        capture_output=True,
        text=True,
        check=True,
    )
    document: dict[str, Any] = json.loads(listing.stdout)
    about = document["metadata"]["component"]
    about["version"] = distributions.version()  # pyproject.toml reads it from _version.py
    document["components"] = [component for component in document["components"] if component["name"] != about["name"]]
    for component in document["components"]:
        if not licences_of(component) and (licence := LICENCES.get(_normalized(component["name"]))):
            component["licenses"] = [{"license": {"id": licence}}]
    return document


def pinned(constraints: str) -> dict[str, str]:
    """Pinned versions by normalized package name."""
    pairs = [line.split(";")[0].split("==") for line in constraints.splitlines() if "==" in line.split("#")[0]]
    return {_normalized(pair[0]): pair[1].strip() for pair in pairs}


def faults_of(document: Mapping[str, Any], pins: Mapping[str, str]) -> list[str]:
    """Faults of a bill of materials, as text."""
    faults = []
    for component in document["components"]:
        name, version = _normalized(component["name"]), str(component.get("version", ""))
        if not version or not str(component.get("purl", "")).startswith("pkg:pypi/"):
            faults.append(f"{name} has no version or no package URL")
        if name not in pins:
            faults.append(f"{name} {version} is not pinned in deploy/constraints.txt")
        elif version.split("+")[0] != pins[name]:  # a local version label, such as +cpu
            faults.append(f"{name} is {version}, but deploy/constraints.txt pins {pins[name]}")
        if not licences_of(component):
            faults.append(f"{name} {version} has no licence: add it to LICENCES in deploy/release/sbom.py")
    return faults


def licences_of(component: Mapping[str, Any]) -> list[str]:
    """A package's licences: SPDX expressions or ids if it has them, else its free text."""
    found = []
    for entry in component.get("licenses", ()):
        licence = entry.get("license", {})
        word = entry.get("expression") or licence.get("id") or licence.get("name")
        if word and word not in found:
            found.append(word.strip().splitlines()[0])  # some packages have the whole licence text there
    exact = [word for word in found if "::" not in word]  # a classifier is less exact than a name
    return exact or [word.rpartition(":: ")[2] for word in found]


def licence_table(document: Mapping[str, Any]) -> str:
    """Packages by licence."""
    packages = defaultdict(list)
    for component in document["components"]:
        packages[" / ".join(licences_of(component))].append(f"{component['name']} {component['version']}")
    return "\n".join(f"{licence}: {', '.join(sorted(names))}" for licence, names in sorted(packages.items()))


def _normalized(name: str) -> str:
    """A package's normalized name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _environment(image: str, scratch: Path) -> str:
    """The Python of a fresh environment with an image's packages."""
    extras = image_extras(image, (ROOT / "deploy" / "Dockerfile").read_text())
    path = scratch / "environment"
    venv.create(path, with_pip=True)
    pip = [str(path / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    _run(*pip, "install", "--quiet", "-c", str(CONSTRAINTS), f"{ROOT}[{extras}]")
    _run(*pip, "uninstall", "--quiet", "--yes", "setuptools")  # installed by venv; images have neither
    _run(*pip, "uninstall", "--quiet", "--yes", "pip")
    return str(path / "bin" / "python")


def _run(*command: str) -> None:
    ended: subprocess.CompletedProcess[str] = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(f"error: {' '.join(command)} failed:\n{ended.stderr}")


if __name__ == "__main__":
    sys.exit(main())
