"""Capacity planning: servers, GPUs and cost for a load, and the resource that limits it, from a measured cost model.

measurements       times the scheduler's passes on this machine (bench_import takes them from `gradellm bench --json`)
costs              a cost model fitted to these measurements
traffic            random requests
replica_simulator  a server's scheduler, simulated on the cost model
request_metrics    records and summaries of requests, real or simulated
validation_run     the same requests on the real scheduler, to validate the simulation
planning           the fewest servers that meet a service level
limits             other resources of the fleet
document           writes docs/capacity.md's tables
"""
