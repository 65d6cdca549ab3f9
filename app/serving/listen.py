"""Where the service listens, and whether it may."""

from __future__ import annotations

import ipaddress
import json
import shlex
import socket

from app.errors import MachineError, RecipeError
from app.recipe import Serve

API_KEY = "RAYREC_API_KEY"  # environment variable; also read by the replicas of a cluster
ADMIN_KEY = "RAYREC_ADMIN_KEY"  # for calls that change what is served; without it they need the API key


def base_url(settings: Serve) -> str:
    """The address to call the service at from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host and '[' not in host else host}:{settings.port}"


def example(url: str, user: str, key: bool) -> str:
    """A command line that asks for a recommendation; with `key` it sends the API key."""
    header = f' -H "X-API-Key: ${API_KEY}"' if key else ""
    body = shlex.quote(json.dumps({"user": user, "k": 5}))
    return f'curl {url}/v1/recommend -H "Content-Type: application/json"{header} -d {body}'


def check_exposure(settings: Serve, key: str) -> None:
    """Refuse an address that other machines reach, unless there is an API key.

    Raises:
        RecipeError: it is open to others, and `key` is empty.
    """
    try:
        loopback = settings.host == "localhost" or ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = False
    if not (loopback or key):
        raise RecipeError(
            f"{settings.host!r} is open to other machines and there is no API key",
            where="serve.host",
            remedy=f"set the environment variable {API_KEY}, or serve.host = '127.0.0.1'",
        )


def check_port(settings: Serve) -> None:
    """Refuse a port at which this process cannot listen.

    Raises:
        MachineError: names the port, its user where that is known, and the remedy.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise MachineError(
            f"cannot listen at {settings.host}:{settings.port} ({error.strerror}){_user_of(settings.port)}",
            where="serve.port",
            remedy="end that process, or choose another port with --port or serve.port",
        ) from error


def _user_of(port: int) -> str:
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f": used by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        pass
    return ""
