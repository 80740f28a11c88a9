"""The HTTP proxy of a request by HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; never for this machine."""

import ipaddress
import os
import socket
import urllib.request
from urllib.parse import urlsplit

from mnist_ray.errors import ClusterError


def is_loopback(url: str) -> bool:
    """Tells whether a URL's host is this machine, so that requests never leave it."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        # Clients also connect to 127.0.0.1 for 127.1 and 2130706433.
        address = ipaddress.ip_address(host if ":" in host else socket.inet_aton(host))
    except (ValueError, OSError):
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified


def is_this_machine(url: str) -> bool:
    """Tells whether a URL's host is this machine, by a loopback or by one of its addresses in a network.

    The name of a host counts only if it is the loopback's: it may lead elsewhere at the next request.
    """
    if is_loopback(url):
        return True
    try:
        address = ipaddress.ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return False
    # Sends nothing. To an address of its own, and to no other, a machine speaks from that address.
    with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except OSError:
            return False
        return ipaddress.ip_address(probe.getsockname()[0]) == address


def proxy_of(url: str) -> str | None:
    """Returns the proxy for requests to a URL, None if they go there directly.

    Raises:
      ClusterError: the proxy is not an HTTP proxy.
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
            f"{name}={without_password(proxy)}: not an HTTP proxy; write it as http://HOST:PORT, or set "
            f"NO_PROXY={parts.hostname} to go there directly"
        )
    return proxy


def is_direct(url: str) -> bool:
    """Tells whether requests to a URL bypass proxies: it is on this machine, or NO_PROXY has its host or network."""
    parts = urlsplit(url)
    if is_loopback(url) or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return True
    try:
        address = ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        return False
    return any(address in network for network in map(_network, _exempt()) if network)


def _exempt() -> list[str]:
    """Returns the entries of NO_PROXY."""
    # Lower case first, like other programs that read both.
    value = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return [name for each in value.split(",") if (name := each.strip())]


def _network(name: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Returns the network of 10.0.0.0/8, 10.0.0.7 or [fd00::1], None for a host name."""
    try:
        return ipaddress.ip_network(name.strip("[]"), strict=False)
    except ValueError:
        return None


def without_password(proxy: str) -> str:
    """Returns a proxy's URL without its user name and password."""
    parts = urlsplit(proxy)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def keep_off_proxies(url: str) -> bool:
    """Makes the libraries of this process and its child processes reach a URL without a proxy, if is_direct.

    They read the environment themselves, each with its own rules for networks, ports and IPv6, and might send a token
    for this URL to the proxy.

    Returns:
      Whether the environment was changed.
    """
    host = urlsplit(url).hostname
    if host is None or not urllib.request.getproxies() or not is_direct(url):
        return False
    names = _exempt()
    # urllib, and so boto3, compares IPv6 addresses with brackets, requests without.
    missing = [name for name in (host, f"[{host}]" if ":" in host else host) if name not in names]
    if not missing or os.environ.get("no_proxy", os.environ.get("NO_PROXY")) == "*":
        return False
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*names, *missing]))
    return True
