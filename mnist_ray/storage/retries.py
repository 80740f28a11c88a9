"""boto3 clients for S3 with our own retries.

boto3's own retries are off: they share a quota, which sixteen threads use up within a second of an outage, and their
number and pauses differ between its versions.
"""

import random
from typing import Any

from mnist_ray.errors import StorageError
from mnist_ray.storage.proxies import keep_off_proxies

ATTEMPTS = 10
# Each attempt at a server that accepts a connection but never answers costs a whole timeout.
TIMEOUT_ATTEMPTS = 3
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30
# For the question whether there is a server at all.
PROBE_TIMEOUT_S = 5

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 20.0
_STATUS_OF_A_BAD_MOMENT = {429, 500, 502, 503, 504}
# Error codes with status 400 for content that was damaged or truncated in transit.
DAMAGED_ON_ITS_WAY = {
    "BadDigest",
    "IncompleteBody",
    "RequestTimeout",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}


def make_client(
    session: Any, *, attempts: int = ATTEMPTS, read_timeout_s: float = READ_TIMEOUT_S, repeats_damaged: bool = True
) -> Any:
    """Returns an S3 client; all settings but retries and timeouts come from AWS's standard places.

    Args:
      attempts: maximum number of attempts per request; after timeouts at most TIMEOUT_ATTEMPTS.
      read_timeout_s: maximum seconds without a byte of an answer.
      repeats_damaged: whether to retry a request that the server found damaged.

    Raises:
      StorageError: the endpoint is not a URL.
    """
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=read_timeout_s,
    )
    try:
        client = session.client("s3", config=config)
        # Only the client knows its URL, and it reads the environment's proxies once.
        if keep_off_proxies(client.meta.endpoint_url):
            client.close()
            client = session.client("s3", config=config)
    except ValueError as error:
        raise StorageError(f"AWS_ENDPOINT_URL: {' '.join(str(error).split())}; write http(s)://host:port") from None

    def pause(*, attempts: int, response: Any, caught_exception: Exception | None, **_: Any) -> float | None:
        is_passing = _is_passing(response, caught_exception, attempts) or (repeats_damaged and _is_damaged(response))
        return pause_s(attempts) if attempts < most and is_passing else None

    most = attempts
    # boto3's own event for retries: return the seconds to wait, or None to give up.
    client.meta.events.register_last("needs-retry.s3", pause)
    return client


def pause_s(attempts: int) -> float:
    """Returns the seconds to wait after a number of attempts, with jitter so that clients don't retry all at once."""
    return random.uniform(0.5, 1) * min(_FIRST_PAUSE_S * 2.0 ** (attempts - 1), _LONGEST_PAUSE_S)


def _is_passing(response: Any, error: Exception | None, attempts: int) -> bool:
    """Tells whether a failure is transient.

    Args:
      response: HTTP response and its parsed content, None if there is none.
      error: the reason for no response.
    """
    from botocore.exceptions import ConnectionError, ConnectTimeoutError, HTTPClientError, ReadTimeoutError

    if response is None:
        if isinstance(error, ConnectTimeoutError | ReadTimeoutError):
            return attempts < TIMEOUT_ATTEMPTS
        return isinstance(error, ConnectionError | HTTPClientError)
    return response[0].status_code in _STATUS_OF_A_BAD_MOMENT


def _is_damaged(response: Any) -> bool:
    return response is not None and response[1].get("Error", {}).get("Code") in DAMAGED_ON_ITS_WAY
