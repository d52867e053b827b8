"""Benchmarks of the engine: `gradellm bench`, and smaller ones as `python -m gradellm_bench.NAME`.

    models        the model to measure, for this engine and for Transformers, over the same tensors
    backends      what is compared: this engine's modes, Transformers' generate, recomputation, Inseq and Captum
    timeline      when each token and attribution row came; every figure is derived from it
    latency       one request: time to first token, time per token, lag of attribution
    served/       many requests: throughput, a long prompt during decoding, prefix reuse, memory, evaluations
    bandwidth     memory bandwidth of the device, which bounds every figure
    report        tables, JSON, plot
    history       docs/benchmark-history.jsonl, a line a run
    regression    cost of one source tree relative to another one's
    preset_costs  cost of each preset relative to the paper's
    study/        which method explains real models best
    capacity/     how many servers a load takes

All backends run in one process on one set of weights. On a shared machine trust ratios within a round, not absolute
times: other load slows all backends alike.
"""

from gradellm_engine.utils import quiet as quiet  # before any module imports Transformers
