"""Asks a cluster's GCS, the server that its nodes and drivers connect to, for the address of its dashboard."""

import os
import subprocess
import sys

# Ray's job client takes this way too, and offers it only together with a first request that carries the token.
_ASK = "from ray.dashboard.utils import get_address_for_submission_client as ask; print(ask(None))"
_OVERRIDDEN = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class NoDashboardError(Exception):
    """Nobody told the dashboard's address; the message is the last line that Ray said, perhaps empty."""


def ask_for_dashboard(gcs_address: str, token: str | None, *, timeout_s: float) -> str:
    """Returns the URL of a cluster's dashboard.

    Asks in a process of its own: Ray reads the variables about tokens once in the life of a process, and waits 40 s for
    a server that is no GCS.

    Args:
      gcs_address: HOST:PORT, or 'auto' for the Ray that runs on this machine.
      token: for Ray's token authentication.
      timeout_s: limit in seconds.

    Raises:
      NoDashboardError: there is no GCS, or it refuses the token.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _OVERRIDDEN}
    mode = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    environment = {**kept, **mode, "RAY_ADDRESS": gcs_address}
    command = [sys.executable, "-c", _ASK]
    try:
        asked = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise NoDashboardError("") from None
    if asked.returncode:
        raise NoDashboardError((asked.stderr.strip().splitlines() or [""])[-1])
    return asked.stdout.strip().splitlines()[-1]
