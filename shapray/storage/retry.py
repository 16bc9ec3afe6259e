"""Storage that stumbles: which errors will pass, and calls made again until they have.

s3fs and gcsfs try a request a few times by themselves (``AWS_RETRY_MODE`` and ``AWS_MAX_ATTEMPTS``
tune the former); other file systems do not. Both are covered here by the clock, not by a count,
so that a store which is really gone costs about a minute however often it was asked underneath.
"""

import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 6.4  # seconds

_PASSING_STATUS = {408, 409, 425, 429, *range(500, 600)} - {501, 505, 507}  # of HTTP
_PASSING_ERRNO = {errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTUNREACH}
# By name: the packages they come from (aiohttp, botocore, requests) need not be installed.
_PASSING_CLASS = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "HTTPClientError",
    "IncompleteRead",
    "ResponseParserError",
    "TimeoutError",
}

logger = logging.getLogger(__name__)


def patiently(call: Callable[[], T]) -> T:
    """What `call` returns; made again, after growing pauses, while it raises what will pass.

    Raises:
        whatever `call` raises, if it will not pass or has not after `PATIENCE_SECONDS`.
    """
    until, pause = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE
    while True:
        try:
            return call()
        except Exception as error:
            if not passes(error) or time.monotonic() + pause > until:
                raise
            say = logger.warning if pause >= LONGEST_PAUSE else logger.debug
            say("the storage stumbles (%s); trying on", type(error).__name__)
        # Of different lengths, so that workers turned away together do not come back together.
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)


def passes(error: BaseException) -> bool:
    """Whether an error, or what caused it, is throttling, a server's or the connection's."""
    return any(map(_passes, _chain(error)))


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _passes(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNO:
        return True
    if _status(error) in _PASSING_STATUS:
        return True
    return any(kind.__name__ in _PASSING_CLASS for kind in type(error).__mro__)


def _status(error: BaseException) -> int | None:
    """The HTTP status that botocore, requests, aiohttp or gcsfs keeps in its error."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for holder, name in ((response, "status_code"), (error, "status"), (error, "code")):
        status = getattr(holder, name, None)
        if isinstance(status, int):
            return status
    return None
