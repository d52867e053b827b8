"""`make image-check`: builds and starts the images of deploy/Dockerfile without a container engine.

    python deploy/image/in_clean_root.py --build-arg TORCH_INDEX=

debootstrap makes a clean Debian root in place of the base image; each stage's instructions are then run, as the
Dockerfile has them, in a copy of its base's root. Both images are started as an engine would with --read-only,
--cap-drop ALL and --security-opt no-new-privileges: as the file's USER, on a read-only root, with tmpfs at /tmp and
/cache, in namespaces of their own (process, mount, IPC, network). Over that network's loopback an explanation is
streamed from the server and a chat from the gateway. Sizes and times are printed as JSON.

Needs root, Linux, debootstrap, and some 8 GB of disk. PIP_* and proxy variables are passed on to RUN. --bind
PATH[:PATH] bind-mounts a file or folder of this machine read-only during RUN; --pip-like-here does so for all that this
machine's pip configuration names: files, package folders and certificates. The Debian mirror is the one that apt uses.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dockerfile as df
import yaml
from builder import BASE, DOCKERFILE, PROJECT, Builder, pip_settings
from commands import CleanRootError, output_of, report
from container import Image, start

PROMPT = "One day Mia"


def main() -> int:
    """Build, start, request, stop; the exit status."""
    options = _parser().parse_args()
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        return _fail("making a clean root needs Linux and root")
    if shutil.which("debootstrap") is None:
        return _fail("debootstrap is not installed (Debian's package debootstrap)")
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        binds, variables = pip_settings() if options.pip_like_here else ([], {})
        arguments = dict(df.argument(text) for text in options.build_arg)
        builder = Builder(folder, arguments, [*options.bind, *binds], variables)
        measured: dict[str, Any] = {"images": {}}
        for name in ("server", "client"):
            start_time = time.monotonic()
            root = builder.stage(name)
            measured["images"][name] = {"mib": _mib(root), "build_seconds": round(time.monotonic() - start_time, 1)}
        measured["base_mib"] = _mib(builder.base())
        measured |= try_images(Image.of(builder, "server"), Image.of(builder, "client"))
    except (df.DockerfileError, CleanRootError) as error:
        return _fail(str(error))
    finally:
        if not options.keep:
            for name in (BASE, *df.read(DOCKERFILE).stages):  # nothing but what was made here
                shutil.rmtree(folder / name, ignore_errors=True)
    print(json.dumps(measured, indent=2))
    return 0


def try_images(server: Image, client: Image) -> dict[str, Any]:
    """Start both images, send requests, stop them; measured times and facts.

    Raises:
        CleanRootError: if a request fails, or an image runs with more privileges than it should.
    """
    arguments = kubernetes_arguments()
    if arguments is None:
        report("kubectl is not installed: the server is not started with the arguments of deploy/kubernetes")
    else:
        with start(server, arguments) as serving:
            serving.wait_until_healthy()
            serving.stop()
    with start(server, server.command) as serving:
        ready = serving.wait_until_healthy()
        start_time = time.monotonic()
        explain = ["explain", "--target", "localhost:50051", PROMPT, "--max-new-tokens", "24", "--format", "json"]
        completed = subprocess.run(  # noqa: S603
            serving.outside([sys.executable, "-m", "gradellm", *explain]),
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        if completed.returncode:
            raise CleanRootError(f"no explanation came:\n{completed.stderr}\n{serving.log.read_text()}")
        seconds = time.monotonic() - start_time
        num_explained = len(json.loads(completed.stdout)["attributions"])
        gateway = ["gateway", "--listen", "127.0.0.1:8080", "--target", "localhost:50051"]
        with start(client, gateway, network_of=serving) as passing:
            passing_ready = passing.wait_until_healthy()
            chat = subprocess.run(  # noqa: S603
                passing.outside([sys.executable, "-c", CHAT, PROMPT]),
                capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            if chat.returncode:
                raise CleanRootError(f"no chat came:\n{chat.stderr}\n{passing.log.read_text()}")
            seen = {"client": {"ready_seconds": round(passing_ready, 1), **passing.facts(), **json.loads(chat.stdout)}}
            status, took = passing.stop()
            seen["client"] |= {"exit_status": status, "stop_seconds": round(took, 2)}
        seen["server"] = {
            "ready_seconds": round(ready, 1),
            **serving.facts(),
            "explained_tokens": num_explained,
            "explain_command_seconds": round(seconds, 1),
        }
        status, took = serving.stop()
        seen["server"] |= {"exit_status": status, "stop_seconds": round(took, 2)}
    for name, facts in seen.items():
        wrong = [
            *(["it runs as root"] if not facts["uid"] else []),
            *(["it has capabilities"] if facts["capabilities"] else []),
            *(["it may gain privileges"] if not facts["no_new_privileges"] else []),
            *(["its root can be written"] if not facts["root_is_read_only"] else []),
            *([f"it ended with status {facts['exit_status']}"] if facts["exit_status"] else []),
        ]
        if wrong:
            raise CleanRootError(f"{name}: {'; '.join(wrong)}")
    return seen


def kubernetes_arguments() -> list[str] | None:
    """The server's arguments in deploy/kubernetes; None without kubectl."""
    if shutil.which("kubectl") is None:
        return None
    rendered = yaml.safe_load_all(output_of(["kubectl", "kustomize", str(PROJECT / "deploy/kubernetes/overlays/cpu")]))
    (deployment,) = [instruction for instruction in rendered if instruction["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return list(container["args"])


# Streams a chat through the gateway, each token with its scores, with Python's standard library only.
CHAT = """
import json, sys, urllib.request
body = {"messages": [{"role": "user", "content": sys.argv[1]}], "stream": True, "max_tokens": 24,
        "gradellm": {"attribution": "paper"}}
request = urllib.request.Request("http://127.0.0.1:8080/v1/chat/completions", json.dumps(body).encode(),
                                 {"Content-Type": "application/json"})
with urllib.request.urlopen(request, timeout=50) as answer:
    lines = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
chunks = [json.loads(line) for line in lines if line != "[DONE]"]
assert lines[-1] == "[DONE]", lines[-1]
assert any("gradellm" in json.dumps(chunk) for chunk in chunks), chunks[:2]
print(json.dumps({"chat_chunks": len(chunks)}))
"""


def _mib(root: Path) -> int:
    """Size of its files in MiB, hard links counted once."""
    return int(
        output_of(["du", "--summarize", "--one-file-system", "--apparent-size", "--block-size=1M", str(root)]).split()[
            0
        ]
    )


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def _bind(text: str) -> tuple[Path, Path]:
    source, _, target = text.partition(":")
    if not Path(source).exists():
        raise argparse.ArgumentTypeError(f"there is no {source}")
    return Path(source), Path(target or source)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Build deploy/Dockerfile's images in clean roots, start them read-only, and stream an explanation."
    )
    parser.add_argument("--folder", type=Path, default=PROJECT / "build" / "image", help="where roots are made")
    parser.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as docker build takes it"
    )
    parser.add_argument("--bind", action="append", default=[], type=_bind, metavar="PATH[:PATH]", help="show it to RUN")
    parser.add_argument(
        "--pip-like-here", action="store_true", help="RUN's pip finds packages where this machine's does"
    )
    parser.add_argument("--keep", action="store_true", help="leave the roots where they are")
    return parser


if __name__ == "__main__":
    sys.exit(main())
