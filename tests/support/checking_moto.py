"""moto's S3 server, which keeps whatever arrives, made to refuse what the signature's SHA-256 does not fit, as S3 does.

python -m tests.support.checking_moto -H HOST -p PORT
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterable
from typing import Any

from moto import server

_REFUSAL = b"<Error><Code>XAmzContentSHA256Mismatch</Code><Message>the content was damaged</Message></Error>"


class CheckingApplication(server.DomainDispatcherApplication):
    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        signed = environ.get("HTTP_X_AMZ_CONTENT_SHA256", "")
        if re.fullmatch("[0-9a-f]{64}", signed):
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            if hashlib.sha256(body).hexdigest() != signed:
                start_response("400 Bad Request", [("Content-Length", str(len(_REFUSAL)))])
                return [_REFUSAL]
        answer: Iterable[bytes] = super().__call__(environ, start_response)
        return answer


if __name__ == "__main__":
    server.DomainDispatcherApplication = CheckingApplication
    server.main()
