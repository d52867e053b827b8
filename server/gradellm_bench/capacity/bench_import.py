"""Pass times derived from a report of `gradellm bench --json`.

The report has gaps and tokens per second by backend and number of streams; the times of passes are their differences.
It has no small prefill chunks and no CUDA graph captures, so that a plan based on it is coarser than one on `measure`.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from gradellm_bench.capacity.measurements import Measurements, PassMeasurement
from gradellm_bench.models import SHAPES
from gradellm_engine.core.request import DEFAULT_CHUNK_SIZE

_CHUNKED = f"chunked({DEFAULT_CHUNK_SIZE})"
_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


def from_bench(path: Path) -> Measurements:
    """The measurements that a report implies.

    Raises:
        ValueError: if the file is not such a report, or its model's shape is unknown.
    """
    try:
        report = json.loads(path.read_text())
        machine = report["machine"]
        name = machine["model"].removeprefix("random ").split(",")[0]
        if name not in SHAPES:
            raise ValueError(f"its model is {name}, and known shapes are {', '.join(SHAPES)}")
        shape, item = SHAPES[name], _ITEM_BYTES[machine["dtype"]]
        width = shape["hidden_size"] // shape["num_attention_heads"]
        per_token = 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * width * item
        parameters = float(machine["model"].split(", ")[1].removesuffix("M parameters").replace(",", "")) * 1e6
        is_gpu = "CPU" not in machine["device"]
        measured = Measurements(
            machine, "cuda" if is_gpu else "cpu", per_token, int(parameters * item), report["bandwidth"],
            shape["max_position_embeddings"],
        )  # fmt: skip
        rows = {(row["backend"], row["prompt_tokens"], row["streams"]): row for row in report["throughputs"]}
        for (backend, context, streams), row in rows.items():
            if backend == "plain":
                measured.passes += _steps(rows, context, streams, row["gap"] / 1e3, measured.processor)
        measured.passes += _prefills(report["latencies"])
    except (OSError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is not what `gradellm bench --json FILE` writes: {error!r}") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
    return measured


def _steps(
    rows: dict[tuple[str, int, int], dict[str, float]], context: int, streams: int, step: float, processor: str
) -> list[PassMeasurement]:
    """Passes of a plain token, of an explained token, and of a chunk's replay."""
    found = [PassMeasurement("step", streams, 1, context, (step,))]
    if explained := rows.get(("per_token", context, streams)):
        step_seconds = streams / explained["tokens_per_second"]
        found += [
            PassMeasurement(
                "explained_step", streams, 1, context, (step,)
            ),  # the same arithmetic, with an autograd graph
            PassMeasurement("scores", streams, 1, context, (max(1e-6, step_seconds - step),)),
        ]
    fits = streams * DEFAULT_CHUNK_SIZE <= (256 if processor == "cuda" else 64)
    if fits and (chunked := rows.get((_CHUNKED, context, streams))):
        a_chunk = DEFAULT_CHUNK_SIZE * (streams / chunked["tokens_per_second"] - step)
        found.append(PassMeasurement("replay", streams, DEFAULT_CHUNK_SIZE, context, (max(1e-6, a_chunk),)))
    return found


def _prefills(latencies: list[dict[str, object]]) -> list[PassMeasurement]:
    """Prefills of whole prompts but their last token; on a CPU, the chunks of a long prompt count as one pass."""
    passes = []
    for row in latencies:
        if row["backend"] == "plain":
            first, step = (statistics.median(row[name]) / 1e3 for name in ("first_token", "per_token"))  # type: ignore[arg-type]
            passes.append(PassMeasurement("read", 1, int(row["prompt_tokens"]) - 1, 0, (first - step,)))  # type: ignore[call-overload]
    return passes
