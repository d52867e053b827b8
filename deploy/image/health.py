"""The image's HEALTHCHECK: `health.py HOST:PORT SERVICE` exits with 0 if the service is SERVING.

Kubernetes has gRPC probes; Docker can only run a program.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_SECONDS = 4.0  # less than the HEALTHCHECK's timeout


def main(address: str, service: str) -> int:
    """Check once; 0 if the service is SERVING, else 1 with the reason on standard error."""
    # Without the environment's proxy, which gRPC would use even for the container's own address.
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            print(f"{address}: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    if response.status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
        print(f"{address}: {service} is {name}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
