"""Connects to a cluster's job API, the HTTP server of its dashboard, by the address of either server of its head."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from mnist_ray.cluster.dashboard import NoDashboardError, ask_for_dashboard
from mnist_ray.errors import ClusterError
from mnist_ray.storage.proxies import is_loopback
from mnist_ray.submission.address import AUTO, is_here, read_token, variable_of
from mnist_ray.submission.job_api import (
    CONNECT_TIMEOUT_S,
    JobClient,
    NoHttp,
    Unreachable,
    refused_token,
    request,
    via,
)
from mnist_ray.text.escape import say_line


def connect(address: str, *, environ: Mapping[str, str] = os.environ) -> JobClient:
    """Returns a client of a cluster's job API once the cluster has answered.

    Without a token, no request goes to another machine unless RAY_AUTH_MODE=disabled; a proxy never sees the token.

    Args:
      address: the result of resolve_address. Where a server speaks no HTTP, it is asked for its dashboard's address,
        as a cluster's GCS; with 'auto' the Ray that runs on this machine is asked. Ray's own address variables are not
        read.
      environ: where to look for the token.

    Raises:
      ClusterError: no answer within 15 s, a missing or wrong token, or a server that is not a Ray cluster's.
    """
    if address == AUTO:
        return _connect_by_gcs(
            address, environ, "auto: no Ray was found on this machine; name a cluster by its dashboard"
        )
    try:
        return _connect(address, environ)
    except NoHttp as error:
        if urlsplit(address).path:
            raise
        return _connect_by_gcs(address, environ, str(error))


def _connect_by_gcs(address: str, environ: Mapping[str, str], otherwise: str) -> JobClient:
    """Connects to the dashboard whose address a cluster's GCS tells.

    Raises:
      ClusterError: see connect; with the text of otherwise if there is no GCS.
    """
    token = read_token(environ, address=address)
    gcs_address = urlsplit(address).netloc or address
    say_line(f"asking {'the Ray on this machine' if address == AUTO else gcs_address} for its dashboard")
    try:
        dashboard = ask_for_dashboard(gcs_address, token.value if token else None, timeout_s=CONNECT_TIMEOUT_S)
    except NoDashboardError as error:
        if "AuthenticationError" in str(error):
            raise ClusterError(refused_token(JobClient(address, token), "refused")) from None
        raise Unreachable(otherwise) from None
    if is_loopback(dashboard) and not is_here(address):
        host, port = urlsplit(address).hostname, urlsplit(dashboard).port
        raise ClusterError(
            f"{gcs_address}: this cluster's dashboard listens on the loopback of {host} only; open a tunnel, "
            f"ssh -L {port}:127.0.0.1:{port} {host}, and use http://127.0.0.1:{port}"
        )
    return _connect(dashboard, environ)


def _connect(address: str, environ: Mapping[str, str]) -> JobClient:
    client = JobClient(address, read_token(environ, address=address))
    if client.token is None and not is_here(address):
        _check_open_on_purpose(address, environ)
    variable = variable_of(address, environ)
    named, remedy = (f"{variable}={address}", f"; correct or unset {variable}") if variable else (address, "")
    through = via(client.proxy())
    if client.token and urlsplit(address).scheme == "http" and not is_here(address):
        say_line(f"warning: {address}: the token travels in plain text; use https or a tunnel on an open network")
    try:
        status, text = request(client, "GET", "/api/version", timeout_s=CONNECT_TIMEOUT_S)
    except Unreachable as error:
        raise type(error)(f"{named}{str(error).removeprefix(address)}{remedy}") from None
    ray_version = _json_object(text).get("ray_version")
    if status != 200 or not isinstance(ray_version, str):
        raise ClusterError(
            f"{named}: answered HTTP {status}{through} and is not a Ray dashboard; "
            f"give the dashboard of the cluster's head, usually http://HOST:8265{remedy}"
        )
    return replace(client, ray_version=ray_version)


def _check_open_on_purpose(address: str, environ: Mapping[str, str]) -> None:
    """Refuses another machine's job API without a token unless RAY_AUTH_MODE=disabled."""
    if environ.get("RAY_AUTH_MODE", "").lower() != "disabled":
        raise ClusterError(
            f"{address}: another machine, and no token was found for it; give this cluster's token in RAY_AUTH_TOKEN "
            "or RAY_AUTH_TOKEN_PATH, or use a tunnel to this machine (RAY_AUTH_MODE=disabled connects without a token)"
        )
    say_line(
        f"warning: {address}: RAY_AUTH_MODE=disabled: anyone who reaches this address can run any code on the cluster"
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
