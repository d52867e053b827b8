"""A fake evaluation server: its values are a pure function of the request. `python -m` runs it as a process.

Words of the prompt select its behaviour: "long" is refused, "poison" is an internal error, "slow" is delayed, "nothing"
cannot be measured.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from gradellm.v1 import explainer_pb2 as pb
from gradellm.v1 import explainer_pb2_grpc

METHODS = (
    "grad_ellm", "attention", "grad_sam", "random", "saliency", "input_x_gradient", "integrated_gradients", "deeplift",
    "layer_gradient_x_activation", "value_zeroing",
)  # fmt: skip


class FakeEvaluator(explainer_pb2_grpc.ExplainerServiceServicer):
    """Answers, on a loopback port, until it is stopped."""

    def __init__(self, address: str = "127.0.0.1:0", *, seconds: float = 0.0, **model: str) -> None:
        self.model = pb.ModelInfo(
            **{
                "name": "models/fake", "weights_sha256": "abc" * 20, "dtype": "float32", "quantization": "none",
                "attention_kernel": "none", "device": "cpu", **model,
            },  # type: ignore[arg-type]
            has_chat_template=True,
        )  # fmt: skip
        self.seconds = seconds
        self.requests: list[pb.EvaluateRequest] = []
        self.failures: list[tuple[int, str]] = []
        """(code, message) of the next calls."""
        self.after_each = threading.Event()
        self.lock = threading.Lock()
        self.most_at_once = self._now = 0
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        explainer_pb2_grpc.add_ExplainerServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.port = self._server.add_insecure_port(address)
        self.target = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        """End at once, as a process that is killed does."""
        self._server.stop(None).wait()

    def prompts(self) -> list[str]:
        """The requests, by the last message's text."""
        return [request.input.messages[-1].content if request.input.messages else request.input.prompt
                for request in self.requests]  # fmt: skip

    def GetServerInfo(self, request: pb.GetServerInfoRequest, context: grpc.ServicerContext) -> Message:  # noqa: N802
        methods = [pb.MethodInfo(name=name, description=name) for name in METHODS]
        methods.append(pb.MethodInfo(name="relevance", description="relevance", refusal="it has no gates"))
        return pb.GetServerInfoResponse(model=self.model, methods=methods, versions={"torch": "2"})

    def Attribute(self, request: pb.AttributeRequest, context: grpc.ServicerContext) -> Iterator[Message]:  # noqa: N802
        if request.attribution.preset == pb.PRESET_GRAD_ECLIP:
            _abort(context, code_pb2.INVALID_ARGUMENT, "this model has no rotary embedding", "attribution.rotary")
        yield pb.AttributeResponse(started=self._started(request.input))
        yield pb.AttributeResponse(finished=pb.Finished())

    def Evaluate(self, request: pb.EvaluateRequest, context: grpc.ServicerContext) -> Iterator[Message]:  # noqa: N802
        with self.lock:
            self.requests.append(request)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            failure = self.failures.pop(0) if self.failures else None
        try:
            yield from self._evaluate(request, context, failure)
        finally:
            with self.lock:
                self._now -= 1

    def _evaluate(
        self, request: pb.EvaluateRequest, context: grpc.ServicerContext, failure: tuple[int, str] | None
    ) -> Iterator[Message]:
        text = request.input.messages[-1].content if request.input.messages else request.input.prompt
        if failure is not None:
            _abort(context, *failure)
        if "long" in text.split():
            _abort(context, code_pb2.INVALID_ARGUMENT, f"has {len(text)} tokens, the limit is 5", "input.messages")
        if "rationale" in text.split() and request.evaluation.rationale:
            _abort(context, code_pb2.INVALID_ARGUMENT, "must hold some of the tokens", "evaluation.rationale")
        yield pb.EvaluateResponse(started=self._started(request.input, request.evaluation))
        if "poison" in text.split():
            _abort(context, code_pb2.INTERNAL, "the server failed with an unexpected error")
        yield pb.EvaluateResponse(token=pb.Token(index=0, id=7, text="Positive", end=8))
        yield pb.EvaluateResponse(progress=pb.Progress(done=0.5))
        time.sleep(self.seconds + 2 * ("slow" in text.split()))
        yield pb.EvaluateResponse(summary=self._summary(request, is_skipped="nothing" in text.split()))
        usage = pb.Usage(prompt_tokens=9, completion_tokens=1)
        yield pb.EvaluateResponse(finished=pb.Finished(usage=usage, timings=pb.Timings()))

    def _started(self, prompt_input: pb.Input, evaluation: pb.EvaluationOptions | None = None) -> pb.Started:
        tokens = [pb.PromptToken(id=i, text="x", start=i, end=i + 1, role=pb.ROLE_USER) for i in range(9)]
        return pb.Started(
            prompt_text="x" * 9,
            prompt_tokens=tokens,
            provenance=pb.Provenance(model=self.model, versions={"torch": "2"}, evaluation=evaluation),
        )

    def _summary(self, request: pb.EvaluateRequest, *, is_skipped: bool) -> pb.EvaluationSummary:
        options = request.evaluation
        metrics = []
        for method in options.methods:
            for metric in options.metrics:
                if is_skipped and metric <= pb.METRIC_SOFT_NC:
                    continue
                numbers = random.Random(f"{options.seed} {method.name} {metric}")
                curve = [numbers.random() for _ in options.pis] if metric <= pb.METRIC_PI_SOFT_NC else []
                value = sum(curve) / len(curve) if curve else numbers.random()
                metrics.append(
                    pb.MetricSummary(
                        name=method.name,
                        metric=metric,
                        interval=pb.Interval(mean=value, low=value - 0.1, high=value + 0.1, count=3),
                        median=value,
                        curve=curve,
                        expected_tokens=4.5 if metric in (pb.METRIC_SOFT_NS, pb.METRIC_SOFT_NC) else None,
                        difference_from_random=None
                        if method.name == "random"
                        else pb.Interval(mean=0.1, low=0, high=1),
                        steps=1,
                    )
                )
        first = hashlib.sha256(str(options.seed).encode()).digest()[0]
        return pb.EvaluationSummary(
            metrics=metrics,
            steps=[0],
            skipped_steps=[0] if is_skipped else [],
            label_index=first % 2 if request.labels else None,
            answer_outside_labels=bool(request.labels) and first % 8 == 0,
            perturbable_tokens=6,
        )


def _abort(context: grpc.ServicerContext, code: int, message: str, field: str = "") -> None:
    status = status_pb2.Status(code=code, message=message)
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if code == code_pb2.RESOURCE_EXHAUSTED:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(200)
        status.details.add().Pack(retry)
    context.abort_with_status(rpc_status.to_status(status))


# --- command lines over data ------------------------------------------------------------------------------------------

FEW = ("--methods", "grad_ellm,random", "--pis", "0.25,0.5")
NOWHERE = ["--target", "127.0.0.1:1"]


def write_data(path: Path, count: int, **words: str) -> Path:
    """Write labelled sentences. Words are added to the texts of the examples that they are given for: e3="long"."""
    lines = [
        {"id": f"e{i}", "text": f"text {i} {words.get(f'e{i}', '')}".strip(), "label": "positive" if i % 2 else 0}
        for i in range(count)
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def evaluate_command(data: Path, out: Path, server: FakeEvaluator, *more: str) -> list[str]:
    """Return the arguments that evaluate a data set on a server."""
    flags = ["--preset", "sst2", "--data", str(data), "--out", str(out), "--target", server.target]
    return ["evaluate", *flags, *FEW, *more]


if __name__ == "__main__":
    server = FakeEvaluator(sys.argv[1], seconds=float(sys.argv[2]))
    print(server.port, flush=True)
    sys.stdin.read()
