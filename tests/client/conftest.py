"""A fake server without a model, over a real channel: it replays scripted responses and records requests."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import hypothesis
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

import gradellm
from gradellm import Client
from gradellm.v1 import explainer_pb2 as pb
from gradellm.v1 import explainer_pb2_grpc
from support.client.async_bridge import AsyncBridge

PROMPT = "Once upon a time"

hypothesis.settings.register_profile("busy machine", deadline=None)
hypothesis.settings.load_profile("busy machine")


def started(prompt: str = PROMPT, **changes: object) -> pb.Started:
    """One prompt token a word, after a token that the tokenizer adds."""
    tokens = [pb.PromptToken(id=1, role=pb.ROLE_TEMPLATE, special=True)]
    position = 0
    for word in prompt.split(" "):
        start, position = position, position + len(word) + bool(position)
        tokens.append(
            pb.PromptToken(
                id=len(tokens) + 1, text=prompt[start:position], start=start, end=position, role=pb.ROLE_USER
            )
        )
    fields: dict[str, object] = {
        "prompt_text": prompt,
        "prompt_tokens": tokens,
        "provenance": pb.Provenance(
            model=pb.ModelInfo(name="fake", num_layers=2),
            versions={"torch": "2", "gradellm": "1"},
            sampling=pb.Sampling(max_new_tokens=3, top_p=1.0, seed=7),
            attribution=pb.AttributionOptions(method="grad_ellm", preset=pb.PRESET_PAPER, layers=pb.Layers(last=2)),
        ),
    }
    return pb.Started(**{**fields, **changes})  # type: ignore[arg-type]


def play(words: tuple[str, ...] = (" there", " was", "n't")) -> list[Message]:
    """The events of a complete stream: each word's row scores one prompt token at 1 and the rest at a quarter."""
    parts: list[Message] = [started()]
    position = 0
    for index, word in enumerate(words):
        parts.append(
            pb.Token(index=index, id=50 + index, text=word, start=position, end=position + len(word), logprob=-0.5)
        )
        scores = [1.0 if column == 1 + index % 4 else 0.25 for column in range(5)]
        parts.append(pb.Attribution(token_index=index, scores=scores, target_token_id=50 + index))
        position += len(word)
    usage = pb.Usage(prompt_tokens=5, completion_tokens=len(words), attributed_tokens=len(words))
    parts.append(pb.Finished(reason=pb.FINISH_REASON_MAX_NEW_TOKENS, usage=usage, timings=pb.Timings(decode_seconds=1)))
    return parts


def _resolved(event: pb.Started, asked: pb.AttributionOptions) -> pb.Started:
    """The event, with the switches that were asked for."""
    resolved = pb.Started()
    resolved.CopyFrom(event)
    for field, value in asked.ListFields():
        if field.enum_type is not None and field.name != "preset":
            setattr(resolved.provenance.attribution, field.name, value)
        elif field.name == "tokens":
            indexes = value.indexes or range(len(value.spans))  # as if a span were one of the first tokens
            resolved.provenance.attribution.tokens.indexes.extend(indexes)
    return resolved


def _use_sampling(used: pb.Sampling, asked: pb.GenerateRequest) -> None:
    """Set the fields of sampling that were asked for beyond those that every server has."""
    names = set(pb.Sampling.DESCRIPTOR.fields_by_name) - {"max_new_tokens", "temperature", "top_k", "top_p", "seed"}
    for field, value in asked.ListFields():
        if field.name not in names:
            continue
        if field.name == "logit_bias":
            used.logit_bias.update(value)
        elif field.name in ("stop", "stop_token_ids"):
            getattr(used, field.name).extend(value)
        else:
            setattr(used, field.name, value)


class FakeServer(explainer_pb2_grpc.ExplainerServiceServicer):
    """Answers with `parts`, then fails with `failure` where there is one."""

    def __init__(self) -> None:
        self.target = ""
        self.requests: list[Message] = []
        self.parts = play()
        self.followed: list[pb.FollowRequest] = []
        self.fails_after = 0  # rows of Follow
        self.verdict = 0  # a number of pb.Verdict, in `finished`
        self.has_tools = False
        self.failure: grpc.Status | None = None
        self.hold = threading.Event()  # set: streams wait after their parts until they are cancelled
        self.received = threading.Event()
        self.cancelled = threading.Event()

    def fail(self, code: int, message: str, *details: Message) -> None:
        status = status_pb2.Status(code=code, message=message)
        for detail in details:
            status.details.add().Pack(detail)
        self.failure = rpc_status.to_status(status)

    def overload(self) -> None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(1500)
        info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="gradellm")
        self.parts = []
        self.fail(code_pb2.RESOURCE_EXHAUSTED, "8 requests wait already, which is the limit", retry, info)

    def _stream(
        self, request: Message, context: grpc.ServicerContext, response: Callable[..., Message]
    ) -> Iterator[Message]:
        self.requests.append(request)
        self.received.set()
        context.add_callback(self.cancelled.set)
        for event in self.parts:
            if (self.failure is not None or self.hold.is_set()) and isinstance(event, pb.Finished):
                break  # a stream that is over does not fail
            if isinstance(event, pb.Started) and hasattr(request, "attribution"):
                event = _resolved(event, request.attribution)
                if isinstance(request, pb.GenerateRequest):
                    _use_sampling(event.provenance.sampling, request)
            yield response(**{type(event).__name__.lower(): event})
        if self.hold.is_set():
            self.cancelled.wait(20)
        self._end(context)

    def _end(self, context: grpc.ServicerContext) -> None:
        if self.failure is not None:
            context.abort_with_status(self.failure)

    def Generate(self, request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[Message]:  # noqa: N802
        return self._stream(request, context, pb.GenerateResponse)

    def Attribute(self, request: pb.AttributeRequest, context: grpc.ServicerContext) -> Iterator[Message]:  # noqa: N802
        return self._stream(request, context, pb.AttributeResponse)

    def Follow(  # noqa: N802
        self, requests: Iterator[pb.FollowRequest], context: grpc.ServicerContext
    ) -> Iterator[Message]:
        """A token and its row for each id that is appended; `followed` has the messages."""
        count = 0
        for request in requests:
            self.followed.append(request)
            match request.WhichOneof("request"):
                case "start":
                    count = len(request.start.completion_ids)
                    yield pb.FollowResponse(started=_resolved(started(), request.start.attribution))
                case "append":
                    for index, token_id in enumerate(request.append.ids, start=count):
                        token = pb.Token(index=index, id=token_id, text="a", start=index, end=index + 1, logprob=-0.5)
                        yield pb.FollowResponse(token=token)
                    total = pb.AgreementTotal(tokens=count + len(request.append.ids), verdict=pb.VERDICT_SAME)
                    yield pb.FollowResponse(
                        agreement=pb.Agreement(first_token=count, tokens=len(request.append.ids), total=total)
                    )
                    for _ in request.append.ids:
                        row = pb.Attribution(token_index=count, scores=[0.25] * 5, target_token_id=1)
                        yield pb.FollowResponse(attribution=row)
                        count += 1
                        if self.failure is not None and count == self.fails_after:
                            failure, self.failure = self.failure, None
                            context.abort_with_status(failure)
                case "finish":
                    finished = pb.Finished(reason=pb.FINISH_REASON_END_OF_COMPLETION)
                    if self.verdict:
                        finished.agreement.verdict = self.verdict  # type: ignore[assignment]
                    yield pb.FollowResponse(finished=finished)
        self.cancelled.set()

    def Tokenize(self, request: pb.TokenizeRequest, context: grpc.ServicerContext) -> Message:  # noqa: N802
        self.requests.append(request)
        self._end(context)
        return pb.TokenizeResponse(prompt_text=PROMPT, tokens=started().prompt_tokens)

    def GetServerInfo(self, request: pb.GetServerInfoRequest, context: grpc.ServicerContext) -> Message:  # noqa: N802
        self.requests.append(request)
        self._end(context)
        return pb.GetServerInfoResponse(
            model=pb.ModelInfo(
                name="fake",
                family="llama",
                num_parameters=260_000,
                has_chat_template=True,
                has_tools=self.has_tools,
            ),
            methods=[pb.MethodInfo(name="grad_ellm", description="Grad-ELLM.", streams=True, switches=["layers"])],
            limits=pb.Limits(max_prompt_tokens=512, max_new_tokens=64),
            versions={"torch": "2"},
        )


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeServer]:
    """The fake server, on a Unix socket."""
    servicer = FakeServer()
    servicer.target = f"unix:{tmp_path}/fake.sock"
    server = grpc.server(futures.ThreadPoolExecutor(4))
    explainer_pb2_grpc.add_ExplainerServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(servicer.target)
    server.start()
    yield servicer
    servicer.cancelled.set()
    server.stop(None).wait()


@pytest.fixture(params=["sync", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """Makes a Client, or an AsyncClient behind the same interface; neither retries."""
    clients: list[Any] = []

    def make(target: str) -> Any:
        clients.append(Client(target, retry=None) if request.param == "sync" else AsyncBridge(target))
        return clients[-1]

    yield make
    for client in clients:
        client.close() if isinstance(client, Client) else client.end()


@pytest.fixture
def client(connect: Callable[[str], Any], fake: FakeServer) -> Any:
    return connect(fake.target)


_SERVER_MODULE = '''
"""A server process without a model. --model selects its behaviour."""
import argparse, os, signal, sys, threading, time
from concurrent import futures
import gradellm
import grpc
import hypothesis
from gradellm.v1 import explainer_pb2 as pb, explainer_pb2_grpc

parser = argparse.ArgumentParser()
parser.add_argument("--listen")
parser.add_argument("--exit-with-stdin", action="store_true")
parser.add_argument("--model", default="demo")
parser.add_argument("--dtype", default="float32")
parser.add_argument("--device", default="cpu")
parser.add_argument("--num-late-answers", type=int, default=0)
args = parser.parse_args()
print("loading", args.model, file=sys.stderr, flush=True)
if args.model == "absent":
    sys.exit("error: there is no model absent")
if args.model == "too large":
    os.kill(os.getpid(), signal.SIGKILL)
if args.model == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Servicer(explainer_pb2_grpc.ExplainerServiceServicer):
    late = args.num_late_answers

    def GetServerInfo(self, request, context):
        if self.late:
            self.late -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "loading")
        return pb.GetServerInfoResponse(model=pb.ModelInfo(name=args.model, dtype=args.dtype, device=args.device))


server = grpc.server(futures.ThreadPoolExecutor(2))
explainer_pb2_grpc.add_ExplainerServiceServicer_to_server(Servicer(), server)
if args.model != "hanging":
    server.add_insecure_port(args.listen)
    server.start()
sys.stdin.read()
if args.model == "stubborn":
    time.sleep(60)
'''


@pytest.fixture
def server_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the real gradellm_server in every process that is started."""
    package = tmp_path / "path" / "gradellm_server"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(_SERVER_MODULE)
    client = Path(next(iter(gradellm.__path__))).parent
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}{os.pathsep}{client}")
    monkeypatch.setattr("gradellm.local.processes._PACKAGES", ())
