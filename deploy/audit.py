"""`make audit`: known vulnerabilities of the pinned packages, and secrets in files of the repository.

pip-audit looks vulnerabilities up over the network. If the service does not respond or knows none of the packages, as
behind a mirror without it, the audit is skipped with a notice. Findings are errors.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "deploy" / "constraints.txt"
# Hashes of models and files, not secrets.
EXCLUDED_FILES = r"^docs/.*\.jsonl?$|^gradellm_engine/demo_model/.*\.json$"
EXCLUDED_LINES = r"^(SECRET|TRACE)\b"  # in tests: test strings and trace ids


def main() -> int:
    """Run both audits; the exit status."""
    return max(vulnerabilities(), secrets())


def vulnerabilities() -> int:
    """Report known vulnerabilities of the packages in deploy/constraints.txt; the exit status."""
    command = ["-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip", "--format", "json"]
    ended = _run(*command, "--progress-spinner", "off", "--timeout", "15")
    try:
        packages: list[dict[str, Any]] = json.loads(ended.stdout)["dependencies"]
    except (ValueError, KeyError):
        if "ConnectionError" in ended.stderr or "ServiceError" in ended.stderr or "Timeout" in ended.stderr:
            print("NOTICE: dependencies are not audited: the vulnerability service does not respond")
            return 0
        print(ended.stderr, file=sys.stderr)
        return 1
    audited = [package for package in packages if "skip_reason" not in package]
    if not audited:
        print("NOTICE: dependencies are not audited: the vulnerability service knows none of the packages")
        return 0
    found = 0
    for package in packages:
        for vulnerability in package.get("vulns", ()):
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
            found += 1
    skipped = ", ".join(package["name"] for package in packages if "skip_reason" in package)
    print(
        f"{len(audited)} packages audited, {found} vulnerabilities" + (f"; not audited: {skipped}" if skipped else "")
    )
    return int(found > 0)


def secrets() -> int:
    """Report possible secrets in tracked and untracked files; the exit status."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],  # noqa: S607  (git of the PATH)
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    files = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    options = ["--no-verify", "--exclude-files", EXCLUDED_FILES, "--exclude-lines", EXCLUDED_LINES]
    scanned = _run("-m", "detect_secrets", "scan", *options, *files)
    if scanned.returncode:
        print(scanned.stderr, file=sys.stderr)
        return 1
    results: dict[str, list[dict[str, Any]]] = json.loads(scanned.stdout)["results"]
    for name, findings in results.items():
        for finding in findings:
            print(f"{name}:{finding['line_number']}: {finding['type']}")
    print(f"{len(files)} files scanned, {sum(map(len, results.values()))} possible secrets")
    return int(bool(results))


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  (this Python, and arguments without a shell)
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


if __name__ == "__main__":
    sys.exit(main())
