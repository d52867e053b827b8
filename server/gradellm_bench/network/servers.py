"""The servers that are compared, each a process of its own on the loopback interface."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from gradellm import Client, GradellmError, OverloadedError, UnavailableError
from gradellm.wire.keywords import GenerateKeywords

START_SECONDS = 600.0
POLL_SECONDS = 0.25
STOP_SECONDS = 20.0
PROBE_SECONDS = 2.0


StreamFn = Callable[[Sequence[int], int], Iterator[int]]
"""Requests a completion of a prompt of token ids, of at most some tokens; yields the new tokens of each message."""


class ServerError(Exception):
    """A server did not start, or ended."""


class StreamRefusedError(Exception):
    """A server refused a request because its queue is full."""


class ServerProcess:
    """A server process and its log.

    Attributes:
        port: where it listens.
    """

    def __init__(
        self, command: Sequence[str], port: int, environment: Mapping[str, str], cores: Collection[int] | None = None
    ) -> None:
        """Start it, on these cores where they are given."""
        self.port = port
        self._command = command
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(  # noqa: S603
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        if cores is not None:
            os.sched_setaffinity(self._process.pid, cores)  # while it has one thread, whose cores others inherit

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Wait until `is_ready()` is true; the process is ended if that fails.

        Raises:
            ServerError: if the process ends, or is not ready in time; with the end of its log.
        """
        until = time.monotonic() + START_SECONDS
        try:
            while not is_ready():
                if self._process.poll() is not None or time.monotonic() > until:
                    self._log.seek(0)
                    log = self._log.read().decode(errors="replace").strip()
                    raise ServerError(f"{self._command[0]} did not start: {log[-2000:]}")
                time.sleep(POLL_SECONDS)
        except BaseException:
            ServerProcess.close(self)
            raise

    def close(self) -> None:
        """End the process: SIGTERM, then SIGKILL."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class GradellmServer(ServerProcess):
    """The server of gradellm, of the current interpreter."""

    def __init__(self, model: Path, arguments: Sequence[str] = (), cores: Collection[int] | None = None) -> None:
        """Start it and wait until it serves; `arguments` are further flags of `gradellm serve`."""
        port = free_port()
        self.target = f"127.0.0.1:{port}"
        command = [sys.executable, "-m", "gradellm_server", "--model", str(model), "--listen", self.target]
        super().__init__([*command, "--metrics-listen", "none", *arguments], port, {}, cores)
        self.wait_until(self._is_ready)
        self._client = Client(self.target, retry=None)  # a refused request is a result

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text."""
        return [token.id for token in self._client.tokenize(text).tokens]

    def stream(self, prompt_ids: Sequence[int], new_tokens: int, attribution: str | None = None) -> Iterator[int]:
        """See `StreamFn`. `attribution` is None, per_token or chunked(SIZE)."""
        keywords: GenerateKeywords = {"prompt_ids": prompt_ids, "max_new_tokens": new_tokens, "temperature": 0.0}
        if attribution is None:
            keywords["attribution"] = None
        elif attribution.startswith("chunked"):
            keywords |= {"delivery": "chunked", "chunk_size": int(attribution[len("chunked(") : -1])}
        else:
            keywords |= {"method": "grad_ellm", "delivery": "per_token"}
        for attempt in range(2):
            has_begun = False
            try:
                for event in self._client.generate(**keywords):
                    has_begun = True
                    yield int(event.token is not None)
            except OverloadedError as error:
                raise StreamRefusedError(str(error)) from error
            except UnavailableError:  # its connection was being replaced
                if has_begun or attempt:
                    raise
            else:
                return

    def _is_ready(self) -> bool:
        try:
            with Client(self.target) as client:
                client.server_info(timeout=PROBE_SECONDS)
        except GradellmError:
            return False
        return True

    def close(self) -> None:
        """See `ServerProcess`."""
        self._client.close()
        super().close()


class VLLMServer(ServerProcess):
    """vLLM's OpenAI server, of a virtual environment of its own."""

    def __init__(
        self, environment: Path, model: Path, arguments: Sequence[str] = (), cores: Collection[int] | None = None
    ) -> None:
        """Start it and wait until it serves; `environment` is the folder with bin/vllm."""
        port, computing = free_port(), sorted(cores or os.sched_getaffinity(0))
        self._model = str(model)
        command = [str(environment / "bin" / "vllm"), "serve", self._model, "--host", "127.0.0.1", "--port", str(port)]
        command += ["--no-enable-prefix-caching", *arguments]
        settings = {
            "OMP_NUM_THREADS": str(len(computing)),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, computing)),
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_HOST_IP": "127.0.0.1",
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
        }
        super().__init__(command, port, settings, cores)
        self.wait_until(self._is_ready)

    def stream(self, prompt_ids: Sequence[int], new_tokens: int) -> Iterator[int]:
        """See `StreamFn`."""
        body = {
            "model": self._model,
            "prompt": list(prompt_ids),
            "max_tokens": new_tokens,
            "temperature": 0.0,
            "stream": True,
        }
        for chunk in posted_chunks(self.port, "/v1/completions", body, "vLLM answered"):
            yield int(bool(chunk["choices"]))

    def _is_ready(self) -> bool:
        return _get(self.port, "/health") is not None


class GatewayServer(ServerProcess):
    """The gateway in front of another engine, of the current interpreter."""

    def __init__(self, upstream: str, target: str, dtype: str, cores: Collection[int] | None = None) -> None:
        """Start it and wait until it explains what the engine at this URL writes, by the server at `target`."""
        port = free_port()
        command = [sys.executable, "-m", "gradellm", "gateway", "--listen", f"127.0.0.1:{port}", "--target", target]
        super().__init__([*command, "--upstream", upstream, "--upstream-dtype", dtype], port, {}, cores)
        self.wait_until(self._is_ready)

    def _is_ready(self) -> bool:
        return bool(json.loads(_get(self.port, "/healthz") or b"{}").get("explains"))


def posted_chunks(port: int, path: str, body: Mapping[str, Any], refusal: str) -> Iterator[dict[str, Any]]:
    """The chunks of an answer that a server of OpenAI's API streams.

    Raises:
        ServerError: it refused the request; `refusal` stands before the status.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise ServerError(f"{refusal} {response.status}: {response.read().decode(errors='replace')}")
        for line in response:
            if line.startswith(b"data: {"):
                yield json.loads(line[len(b"data: ") :])
    finally:
        connection.close()


def _get(port: int, path: str) -> bytes | None:
    """What a server says of a path with status 200; None otherwise."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.read() if response.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port
