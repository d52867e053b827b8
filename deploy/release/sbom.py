"""`make sbom`: what is in an image, as a CycloneDX bill of materials in dist/.

    python deploy/release/sbom.py server          what deploy/Dockerfile's stage `server` installs
    python deploy/release/sbom.py client
    python deploy/release/sbom.py server --python /opt/gradellm/bin/python      of an image's environment

Of a real environment: the wheel with the Dockerfile's own extras and the pinned versions is installed into a fresh one,
unless --python names one (inside an image, say). cyclonedx-bom lists it and checks its list against CycloneDX's schema;
here it is then seen that every package has a name, a version, an address by which scanners know it and a licence, and
that versions are the pinned ones. The packages' licences are printed as a table. Of Debian's packages in the image's
base it tells nothing: an image scanner does (docs/upgrading.md).
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
EXTRAS = {"server": "EXTRAS", "client": "CLIENT_EXTRAS"}  # an image's stage, and the Dockerfile's argument for it
SPECIFICATION = "1.6"
# Of packages whose metadata name their licence in words of their own, in an old field that cyclonedx-bom passes over;
# each as the licence file says that it brings along.
LICENCES = {"protobuf": "BSD-3-Clause", "torchao": "BSD-3-Clause", "transformers": "Apache-2.0"}


def main() -> int:
    """Make one; the exit status."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    made.add_argument("image", choices=list(EXTRAS))
    made.add_argument("--python", help="the Python of an environment that exists; a fresh one is made otherwise")
    made.add_argument("--output", type=Path, help="default: dist/gradellm-VERSION-IMAGE.cdx.json")
    options = made.parse_args()
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
        ValueError: where it does not say them.
    """
    found = re.search(rf"^ARG {EXTRAS[image]}=(\S+)$", dockerfile, re.MULTILINE)
    if found is None:
        raise ValueError(f"deploy/Dockerfile has no line ARG {EXTRAS[image]}=..., which says what the image holds")
    return found[1]


def bill(python: str) -> dict[str, Any]:
    """What an environment holds, checked against CycloneDX's schema; the package itself is what it is a bill of."""
    tool, project = str(Path(sys.executable).with_name("cyclonedx-py")), str(ROOT / "pyproject.toml")
    options = ["--spec-version", SPECIFICATION, "--output-reproducible", "--validate", "--output-format", "JSON"]
    told = subprocess.run(  # noqa: S603  (the tool beside this Python, without a shell)
        [tool, "environment", "--pyproject", project, *options, python],
        env={**os.environ, "SOURCE_DATE_EPOCH": distributions.commit_time()},
        capture_output=True,
        text=True,
        check=True,
    )
    document: dict[str, Any] = json.loads(told.stdout)
    about = document["metadata"]["component"]
    about["version"] = distributions.version()  # pyproject.toml says that it is in _version.py
    document["components"] = [its for its in document["components"] if its["name"] != about["name"]]
    for its in document["components"]:
        if not licences_of(its) and (licence := LICENCES.get(_name(its["name"]))):
            its["licenses"] = [{"license": {"id": licence}}]
    return document


def pinned(constraints: str) -> dict[str, str]:
    """Versions by name, as constraints say them."""
    pairs = [line.split(";")[0].split("==") for line in constraints.splitlines() if "==" in line.split("#")[0]]
    return {_name(pair[0]): pair[1].strip() for pair in pairs}


def faults_of(document: Mapping[str, Any], pins: Mapping[str, str]) -> list[str]:
    """What a bill leaves open, in words."""
    faults = []
    for its in document["components"]:
        name, version = _name(its["name"]), str(its.get("version", ""))
        if not version or not str(its.get("purl", "")).startswith("pkg:pypi/"):
            faults.append(f"{name} has no version or no address")
        if name not in pins:
            faults.append(f"{name} {version} is not pinned in deploy/constraints.txt")
        elif version.split("+")[0] != pins[name]:  # what stands behind + is a build of the same version
            faults.append(f"{name} is {version}, and deploy/constraints.txt pins {pins[name]}")
        if not licences_of(its):
            faults.append(f"{name} {version} does not say its licence: add it to LICENCES in deploy/release/sbom.py")
    return faults


def licences_of(component: Mapping[str, Any]) -> list[str]:
    """Licences of a package: SPDX expressions and ids where it says them, else its own words."""
    found = []
    for entry in component.get("licenses", ()):
        its = entry.get("license", {})
        word = entry.get("expression") or its.get("id") or its.get("name")
        if word and word not in found:
            found.append(word.strip().splitlines()[0])  # some put the whole text there
    exact = [word for word in found if "::" not in word]  # a classifier says less than a name beside it
    return exact or [word.rpartition(":: ")[2] for word in found]


def licence_table(document: Mapping[str, Any]) -> str:
    """Packages by licence."""
    packages = defaultdict(list)
    for its in document["components"]:
        packages[" / ".join(licences_of(its))].append(f"{its['name']} {its['version']}")
    return "\n".join(f"{licence}: {', '.join(sorted(names))}" for licence, names in sorted(packages.items()))


def _name(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _environment(image: str, scratch: Path) -> str:
    """A fresh environment with what an image's has; its Python."""
    extras = image_extras(image, (ROOT / "deploy" / "Dockerfile").read_text())
    path = scratch / "environment"
    venv.create(path, with_pip=True)
    pip = [str(path / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    _run(*pip, "install", "--quiet", "-c", str(CONSTRAINTS), f"{ROOT}[{extras}]")
    _run(*pip, "uninstall", "--quiet", "--yes", "setuptools")  # of the environment's making; images have neither
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
