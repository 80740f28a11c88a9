"""The HTTP proxy of a request, as HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say; this machine has none."""

import ipaddress
import os
import socket
import urllib.request
from urllib.parse import urlsplit

from mnist_ray.errors import ClusterError


def is_loopback(url: str) -> bool:
    """Tells whether a URL's host is this machine, so that nobody else sees what is sent there."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        # 127.1 and 2130706433 are 127.0.0.1 too, for all that connects.
        address = ipaddress.ip_address(host if ":" in host else socket.inet_aton(host))
    except (ValueError, OSError):
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified


def proxy_of(url: str) -> str | None:
    """Returns the proxy that requests to a URL take, None if they go there directly.

    Raises:
      ClusterError: it is no HTTP proxy.
    """
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or is_direct(url):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if urlsplit(proxy).scheme not in ("http", "https") or not urlsplit(proxy).hostname:
        name = f"{parts.scheme.upper()}_PROXY" if proxies.get(parts.scheme) else "ALL_PROXY"
        raise ClusterError(
            f"{name}={shown(proxy)}: no HTTP proxy; write it as http://HOST:PORT, or set NO_PROXY={parts.hostname} to "
            "go there directly"
        )
    return proxy


def is_direct(url: str) -> bool:
    """Tells whether requests to a URL take no proxy: it is on this machine, or NO_PROXY has its host or its network."""
    parts = urlsplit(url)
    if is_loopback(url) or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return True
    try:
        address = ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        return False
    return any(address in network for network in map(_network, _exempt()) if network)


def _exempt() -> list[str]:
    """The entries of NO_PROXY."""
    # Lower case first, as all do that read both.
    value = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return [name for each in value.split(",") if (name := each.strip())]


def _network(name: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Returns what 10.0.0.0/8, 10.0.0.7 or [fd00::1] means, None for a host's name."""
    try:
        return ipaddress.ip_network(name.strip("[]"), strict=False)
    except ValueError:
        return None


def shown(proxy: str) -> str:
    """Returns a proxy's URL without its user name and password."""
    parts = urlsplit(proxy)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def keep_off_proxies(url: str) -> bool:
    """Has the libraries of this process, and the processes that it starts, reach a URL without a proxy, if is_direct.

    They read the environment by themselves, each by its own rules for networks, ports and IPv6, and would give what is
    sent there, such as a token, to the proxy.

    Returns:
      Whether the environment was changed.
    """
    host = urlsplit(url).hostname
    if host is None or not urllib.request.getproxies() or not is_direct(url):
        return False
    names = _exempt()
    # urllib, and so boto3, compares an IPv6 address with its brackets, requests without.
    missing = [name for name in (host, f"[{host}]" if ":" in host else host) if name not in names]
    if not missing or os.environ.get("no_proxy", os.environ.get("NO_PROXY")) == "*":
        return False
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*names, *missing]))
    return True
