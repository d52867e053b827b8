"""The command line as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gradellm


def start(*arguments: str, **environ: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "gradellm", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=with_path(**environ),
    )


def with_path(**environ: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(next(iter(gradellm.__path__))).parent), **environ}
