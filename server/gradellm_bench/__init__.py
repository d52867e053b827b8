"""What an explained token costs on this machine, beside what one would use instead: `gradellm bench`.

    subject      the model: random weights of a named shape, or a checkpoint; twice over the same tensors
    ways         how tokens are decoded and explained: this engine's ways, Transformers' generate, recomputation, peers
    timeline     when a run told what; every figure is derived from it
    latency      one request: time to the first token, between tokens, to a token's vector
    load         many requests: throughput, what a long prompt does to running streams, prefix reuse, memory
    bandwidth    how fast the device reads memory: the floor of every figure
    report       tables, JSON, plot

Everything runs in one process on one set of weights. Ratios within a round are what to trust: a shared machine is now
faster, now slower, for all of them alike.
"""
