"""The rules for a storage's URI and the paths in it, and its display without secrets."""

import os
import re
import urllib.parse

from mnist_ray.errors import ConfigError

_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def check_uri(uri: str, setting: str = "storage") -> str:
    """Returns a storage URI in its normal form: an absolute local path, or s3://bucket/prefix.

    Raises:
      ConfigError: empty, another scheme, credentials, a query or fragment, no bucket, '..' in a prefix, or control
        characters. The message never shows credentials.
    """

    def refuse(rule: str) -> ConfigError:
        return ConfigError(f"{setting}={without_secrets(uri)!r}: {rule}")

    if not uri.strip():
        raise refuse("give a folder, or s3://bucket/prefix")
    if _CONTROL.search(uri):
        raise refuse("remove the control characters")
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return os.path.abspath(os.path.expanduser(uri))
    kind = scheme[1].lower()
    if kind not in ("file", "s3"):
        raise refuse(f"{kind}:// is not supported; use a local path, file:///folder or s3://bucket/prefix")
    authority, slash, path = uri[scheme.end() :].removeprefix("/").partition("/")
    # A secret key may hold a slash, so the '@' may come after the apparent authority.
    in_front = "@" in authority or (":" in authority and "@" in path)
    if in_front or re.search(r"(access|secret)_?key|token", uri.partition("?")[2], re.IGNORECASE):
        raise refuse("no credentials in a URI; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if "?" in uri or "#" in uri:
        raise refuse("no query or fragment; endpoint and region come from AWS_ENDPOINT_URL and AWS_REGION")
    if not uri[scheme.end() :].startswith("/"):
        raise refuse(f"write {kind}:// with two slashes before the {'bucket' if kind == 's3' else 'host'}")
    if kind == "file":
        if authority not in ("", "localhost") or not slash:
            raise refuse("a file URI starts with file:/// and an absolute path")
        return check_uri(os.path.abspath("/" + urllib.parse.unquote(path)), setting)
    if not _BUCKET.fullmatch(authority):
        raise refuse("needs a bucket name of letters, digits, '.', '_' or '-': s3://bucket/prefix")
    prefix = path.rstrip("/")
    if prefix and not is_path(prefix):
        raise refuse("no empty, '.' or '..' parts in the prefix")
    return f"s3://{authority}/{prefix}".rstrip("/")


def is_path(path: str) -> bool:
    """Tells whether a path can name an object in a storage; some names of files on a disk or objects on S3 can't."""
    return not _CONTROL.search(path) and not any(segment in ("", ".", "..") for segment in path.split("/"))


def without_secrets(text: str) -> str:
    """Hides possible secrets: user information (a secret key can hold slashes) and query values."""
    text = re.sub(r"//\S*@", "//***@", text)
    return re.sub(r"([?#]).*", r"\1***", text, flags=re.DOTALL) if _SCHEME.match(text) else text
