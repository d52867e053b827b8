"""A cost model with round figures, and the recorded measurements."""

from __future__ import annotations

from pathlib import Path

from gradellm_bench.capacity.costs import Costs, PassModel
from gradellm_bench.capacity.limits import Wire
from gradellm_bench.capacity.measurements import Kind
from gradellm_bench.capacity.replica_simulator import ReplicaSettings
from gradellm_bench.capacity.traffic import Mode, SimulatedRequest, Traffic

DOCS = Path(__file__).parents[3] / "docs"
STEP, SCORES, REPLAY, READ = 0.010, 0.008, 0.020, 0.001  # seconds; READ is of a prefill chunk's token


def model(*bases: float) -> PassModel:
    """Seconds of a pass of 1 row, of 2 rows, ..."""
    return PassModel((1, 2)[: len(bases)], bases, 0.0, rounds=False, error=0.0)


MODELS: dict[Kind, PassModel] = {
    "step": model(STEP),
    "explained_step": model(STEP),
    "scores": model(SCORES),
    "replay": model(REPLAY),
    "read": model(READ, 2 * READ),
}
COSTS = Costs(MODELS, "cpu", {}, 1000, 10**9, 1e11)
SERVER = ReplicaSettings(max_running=8, kv_tokens=8000)
TRAFFIC = Traffic(1.0, prompt_tokens=50, answer_tokens=20, max_new_tokens=60, context_tokens=512)
WIRE = Wire(100e-6, 100e-6, 0.2e-6, 500e-6, 33, 8, 500)


def request(
    mode: Mode, *, arrival: float = 0.0, prompt: int = 11, answer: int = 4, slots: int = 100
) -> SimulatedRequest:
    """A request that is like all others but for what a test says."""
    return SimulatedRequest(arrival, prompt, answer, slots, mode)
