"""Finds the address and the token of a Ray cluster's job API without importing ray."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from mnist_ray.errors import ClusterError, ConfigError
from mnist_ray.storage.proxies import is_this_machine

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
WHERE_TOKENS_ARE = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
AUTO = "auto"
_ONLY_WITH_MODE = "goes to another machine only with RAY_AUTH_MODE=token"
_LOCAL_DASHBOARD = "http://127.0.0.1:8265"
_HOW_TO_WRITE_IT = "write it as http://HOST:PORT, the dashboard of the cluster's head (port 8265 unless changed)"


@dataclass(frozen=True)
class Token:
    """A token for Ray's token authentication and the setting it came from."""

    value: str = field(repr=False)
    source: str


def resolve_address(option: str | None, environ: Mapping[str, str]) -> str | None:
    """Returns the URL of the job API that a command talks to, or of a server that knows it; see connect.

    Args:
      option: the value of --address; it overrides the environment.
      environ: the environment, read for RAY_API_SERVER_ADDRESS and then RAY_ADDRESS.

    Returns:
      http://HOST:PORT or https://HOST:PORT, perhaps with a path, without a trailing slash; 'auto' for the Ray that runs
      on this machine; None to run on this machine without a cluster, if no address is given or it is 'local'.

    Raises:
      ConfigError: the address is not a job API's, or it carries credentials.
    """
    if option is not None:
        return _normalize(option, "--address")
    for variable in ADDRESS_VARIABLES:
        if environ.get(variable):
            return _normalize(environ[variable], variable)
    return None


def variable_of(address: str, environ: Mapping[str, str]) -> str | None:
    """Returns the variable that holds an address, or None.

    An option that repeats the variable's value can't be distinguished; the address is the same.
    """
    variable = next((name for name in ADDRESS_VARIABLES if environ.get(name)), None)
    return variable if variable and _normalize(environ[variable], variable) == address else None


def _normalize(text: str, setting: str) -> str | None:
    if text == "local":
        return None
    if text == AUTO:
        return AUTO
    # Check first: urlsplit silently drops line breaks.
    if not re.fullmatch(r"[!-~]+", text):
        raise ConfigError(f"{setting}={text!r}: an address has no spaces or control characters; {_HOW_TO_WRITE_IT}")
    if "@" in text:
        raise ConfigError(
            f"{setting}: an address holds no user name or password (not shown here); "
            "remove the part before '@' and give a token as RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    return _check_url(text if "://" in text else f"http://{text}", text, setting)


def _check_url(url: str, text: str, setting: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{setting}={text!r}: {error}; {_HOW_TO_WRITE_IT}") from None
    if parts.scheme == "ray":
        raise ConfigError(
            f"{setting}={text!r}: ray:// is Ray Client's port, which takes no jobs; "
            f"use http://{_host(parts)}:8265, the dashboard's port on the same host"
        )
    if parts.scheme not in ("http", "https"):
        raise ConfigError(f"{setting}={text!r}: the scheme must be http or https; {_HOW_TO_WRITE_IT}")
    if not parts.hostname or parts.query or parts.fragment or ("://" not in text and port is None):
        raise ConfigError(f"{setting}={text!r}: {_HOW_TO_WRITE_IT}")
    return url.rstrip("/")


def _host(parts: SplitResult) -> str:
    host = parts.hostname or "HOST"
    return f"[{host}]" if ":" in host else host


def read_token(environ: Mapping[str, str] = os.environ, *, address: str = _LOCAL_DASHBOARD) -> Token | None:
    """Returns the token for a job API, or None.

    Args:
      environ: read for RAY_AUTH_TOKEN, then RAY_AUTH_TOKEN_PATH (a file), then HOME/.ray/auth_token.
        RAY_AUTH_MODE=disabled means no token; without a mode, any token found is used.
      address: of the job API, as from resolve_address. The file in HOME, which every local Ray creates, is sent to
        other machines only with RAY_AUTH_MODE=token, as Ray's own client does.

    Raises:
      ClusterError: the named file can't be read, its content is not a token, or RAY_AUTH_MODE=token finds none.
    """
    if environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if environ.get("RAY_AUTH_TOKEN"):
        return _check_token(environ["RAY_AUTH_TOKEN"], "RAY_AUTH_TOKEN")
    if environ.get("RAY_AUTH_TOKEN_PATH"):
        path = Path(environ["RAY_AUTH_TOKEN_PATH"])
        return _check_token(_read_file(path, "RAY_AUTH_TOKEN_PATH"), f"RAY_AUTH_TOKEN_PATH={path}")
    is_asked_for = environ.get("RAY_AUTH_MODE", "").lower() == "token"
    path = _home_token(environ)
    if path.exists() and (is_asked_for or is_here(address)):
        return _check_token(_read_file(path, "token file"), str(path))
    if is_asked_for:
        raise ClusterError(f"RAY_AUTH_MODE=token: no token was found; give one in {WHERE_TOKENS_ARE}")
    return None


def token_text(address: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """Returns which token is sent to a cluster, and why none; without an address, to which clusters.

    Raises:
      ClusterError: see read_token.
    """
    if environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return "none is sent: RAY_AUTH_MODE=disabled"
    token = read_token(environ) if address is None else read_token(environ, address=address)
    home = str(_home_token(environ))
    if token is None:
        if address is not None and _home_token(environ).exists():
            return f"none is sent to {address}: {home}, which any local Ray creates, {_ONLY_WITH_MODE}"
        return f"none was found; a cluster with token authentication needs {WHERE_TOKENS_ARE}"
    if address is not None:
        return f"from {token.source}, sent to {address}"
    is_for_all = token.source != home or environ.get("RAY_AUTH_MODE", "").lower() == "token"
    return (
        f"from {token.source}, for {'any cluster' if is_for_all else f'clusters on this machine; it {_ONLY_WITH_MODE}'}"
    )


def _home_token(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME", "~")).expanduser() / ".ray" / "auth_token"


def is_here(address: str) -> bool:
    """Tells whether an address, as from resolve_address, is this machine's."""
    return address == AUTO or is_this_machine(address)


def _read_file(path: Path, setting: str) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise ClusterError(f"{setting}={path}: {error.strerror}; name a readable file that holds the token") from None
    except UnicodeDecodeError:
        raise ClusterError(f"{setting}={path}: not a token; name a file that holds the token alone") from None


def _check_token(text: str, source: str) -> Token:
    # A line break would end the HTTP header that carries the token.
    if not re.fullmatch(r"[!-~]+", text.strip()):
        raise ClusterError(f"{source}: not a token; a token is one word of ASCII characters")
    return Token(value=text.strip(), source=source)
