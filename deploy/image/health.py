"""Whether a server is SERVING, by its exit status: `health.py HOST:PORT SERVICE`. The image's HEALTHCHECK.

Kubernetes asks by itself (probes of kind grpc); an engine such as Docker can only run a program.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

PATIENCE_SECONDS = 4.0  # less than the HEALTHCHECK's own


def main(address: str, service: str) -> int:
    """Ask once; 0 where it is SERVING, 1 elsewhere, with a line that says why."""
    # Without a proxy of the environment, which gRPC would ask for the container's own address too.
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_SECONDS)
        except grpc.RpcError as error:
            print(f"{address}: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        print(f"{address}: {service} is {name}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
