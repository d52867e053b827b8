"""Passes of a machine on which only `gradellm bench` ran: what its report tells of them.

The report has a stream's gaps and tokens a second by way of decoding, at some numbers of streams; a token's passes are
taken apart by differences. It has no reading of small pieces, and no recordings: a plan by it is a little coarser.
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
    """What a report of `gradellm bench --json FILE` tells.

    Raises:
        ValueError: for a file that is not that, or of a model whose shape is not known.
    """
    try:
        report = json.loads(path.read_text())
        machine = report["machine"]
        name = machine["model"].removeprefix("random ").split(",")[0]
        if name not in SHAPES:
            raise ValueError(f"it is of {name}, and the shapes that are known are {', '.join(SHAPES)}")
        shape, item = SHAPES[name], _ITEM_BYTES[machine["dtype"]]
        width = shape["hidden_size"] // shape["num_attention_heads"]
        per_token = 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * width * item
        parameters = float(machine["model"].split(", ")[1].removesuffix("M parameters").replace(",", "")) * 1e6
        is_gpu = "CPU" not in machine["device"]
        measured = Measurements(
            machine, "cuda" if is_gpu else "cpu", per_token, int(parameters * item), report["bandwidth"],
            shape["max_position_embeddings"],
        )  # fmt: skip
        rows = {(its["way"], its["prompt_tokens"], its["streams"]): its for its in report["throughputs"]}
        for (way, context, streams), its in rows.items():
            if way == "plain":
                measured.passes += _steps(rows, context, streams, its["gap"] / 1e3, measured.processor)
        measured.passes += _readings(report["latencies"])
    except (OSError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is not what `gradellm bench --json FILE` writes: {error!r}") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
    return measured


def _steps(
    rows: dict[tuple[str, int, int], dict[str, float]], context: int, streams: int, step: float, processor: str
) -> list[PassMeasurement]:
    """A token without explanation, one with it, and a chunk."""
    found = [PassMeasurement("step", streams, 1, context, (step,))]
    if explained := rows.get(("per_token", context, streams)):
        whole = streams / explained["tokens_per_second"]
        found += [
            PassMeasurement("explained_step", streams, 1, context, (step,)),  # the same arithmetic, with a graph
            PassMeasurement("scores", streams, 1, context, (max(1e-6, whole - step),)),
        ]
    fits = streams * DEFAULT_CHUNK_SIZE <= (256 if processor == "cuda" else 64)
    if fits and (chunked := rows.get((_CHUNKED, context, streams))):
        a_chunk = DEFAULT_CHUNK_SIZE * (streams / chunked["tokens_per_second"] - step)
        found.append(PassMeasurement("replay", streams, DEFAULT_CHUNK_SIZE, context, (max(1e-6, a_chunk),)))
    return found


def _readings(latencies: list[dict[str, object]]) -> list[PassMeasurement]:
    """Whole prompts, but for their last tokens; on a CPU a long one is several pieces, which are told as one."""
    found = []
    for its in latencies:
        if its["way"] == "plain":
            first, step = (statistics.median(its[name]) / 1e3 for name in ("first_token", "per_token"))  # type: ignore[arg-type]
            found.append(PassMeasurement("read", 1, int(its["prompt_tokens"]) - 1, 0, (first - step,)))  # type: ignore[call-overload]
    return found
