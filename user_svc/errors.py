"""What can be wrong with a request, as its caller is told (RFC 9457, application/problem+json).

Problem                 status, type and title are the class's; detail is the instance's
├── InvalidRequest      422  the body, a parameter or a header is not as documented
├── NotFound            404
├── EmailTaken          409  the address is registered
├── TooManyResends      429  three a day
├── Unauthorized        401
├── BodyTooLarge        413
├── UnsupportedType     415
├── RequestTimeout      408  the body did not arrive in time
├── Unreadable          500  the user's record was written by no version of ours
└── TryLater            503  nothing is known to have happened; repeat with the same Idempotency-Key
"""

from typing import ClassVar


class Problem(Exception):
    """Something that the caller is told.

    Attributes:
        detail: a sentence for a person. headers: to be sent with the answer. errors: field and what is wrong with it.
    """

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self, detail: str = "", *, headers: dict[str, str] | None = None, errors: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.headers = headers or {}
        self.errors = errors or {}


class InvalidRequest(Problem):
    status, kind, title = 422, "invalid-request", "The request is not valid"


class NotFound(Problem):
    status, kind, title = 404, "not-found", "There is no such thing"


class EmailTaken(Problem):
    status, kind, title = 409, "email-taken", "The address is already registered"


class TooManyResends(Problem):
    status, kind, title = 429, "too-many-resends", "Three resends a day are the limit"


class Unauthorized(Problem):
    status, kind, title = 401, "unauthorized", "A valid bearer token is needed"

    def __init__(self) -> None:
        super().__init__(headers={"WWW-Authenticate": 'Bearer realm="mailflow"'})


class BodyTooLarge(Problem):
    status, kind, title = 413, "body-too-large", "The body is too large"


class UnsupportedType(Problem):
    status, kind, title = 415, "unsupported-media-type", "The body must be application/json"


class RequestTimeout(Problem):
    status, kind, title = 408, "request-timeout", "The body did not arrive in time"


class Unreadable(Problem):
    status, kind, title = 500, "unreadable-record", "The user's record cannot be read"


class TryLater(Problem):
    status, kind, title = 503, "try-later", "Not possible just now"

    def __init__(self, detail: str, *, retry_after_s: int = 1) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_s)})
