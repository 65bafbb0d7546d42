"""Whether a Ray cluster answers, asked before Ray itself is: Ray would ask for minutes, and then end the process."""

import importlib
import os
import socket

from kdctool.errors import EnvironmentFault, UsageFault

CONNECT_S, ANSWER_S = 5.0, 8.0
_NOT_A_PLACE = ("", "auto", "local")
_HEALTH = "/grpc.health.v1.Health/Check"
_NEXT = (
    "does `ray status --address {}` answer here? On the head node `ray start --head` prints the address;"
    " leave --ray-address out for a Ray on this machine"
)


def check(address: str) -> None:
    """EnvironmentFault within 15 s when nothing answers at `address` (or at RAY_ADDRESS), or something that is not Ray.

    `auto`, `local` and no address at all name no place: Ray itself says at once when it finds nothing.
    """
    address = address or os.environ.get("RAY_ADDRESS", "")
    if address in _NOT_A_PLACE:
        return
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    host = host.strip("[]")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageFault(f"--ray-address {address!a} is no address", "write HOST:PORT, for example node1:6379")
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_S):
            pass
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise EnvironmentFault(f"cannot reach the Ray cluster at {address}: {why}", _NEXT.format(address)) from error
    _check_answer(address, host, int(port))


def _check_answer(address: str, host: str, port: int) -> None:
    """Ray speaks gRPC, which asks no cluster's secret for its health; with TLS the TCP connection has to do."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("", "0", "false"):
        return
    grpc = importlib.import_module("grpc")
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_HEALTH)(b"", timeout=ANSWER_S)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise EnvironmentFault(
                    f"cannot reach the Ray cluster at {address}: what listens there does not answer as Ray does",
                    _NEXT.format(address),
                ) from error
