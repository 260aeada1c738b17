"""The error tree. Each error knows how OpenAI would say it: status, type, code, param.

    ProxyError
    ├── RequestError            400  the client's request is wrong; `param` names the field
    │   ├── ModelNotFound       404
    │   ├── Unauthorized        401  no key of this proxy, or a wrong one
    │   └── RateLimited         429  more than the key may have; `type` names what is used up
    ├── Overloaded              503
    ├── DeadlineExceeded        504  the whole reply took longer than it may
    ├── UpstreamError           502
    │   ├── UpstreamUnreachable 502  refused, reset, DNS, TLS
    │   ├── UpstreamDown        503  it is not even asked: its breaker is open
    │   ├── UpstreamTimeout     504  connect, first byte, or silence in the middle
    │   ├── UpstreamRejected    the upstream's own status and message
    │   ├── UpstreamGarbled     502  not SSE, not JSON, or cut off before its end
    │   └── ContinuationFailed  502  it would not write on from a given text
    ├── ReviewError             502  the aligner failed; nothing unreviewed is delivered
    │   ├── Unreviewable        502  this text cannot be reviewed, however well the aligner is
    │   └── AlignerUnavailable  503  it is not even asked: its breaker is open
    └── ConfigError             never sent: start-up fails with the key's name

Messages are shown to clients: they never hold a key, a header or an address with a password.
"""


class ProxyError(Exception):
    """Base of all errors that become an answer in OpenAI's shape."""

    status: int = 500
    type: str = "server_error"
    code: str | None = None
    upstream: str | None = None  # the configured name of the one that failed, for the log

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status if status is not None else self.status
        self.type = type if type is not None else self.type
        self.code = code if code is not None else self.code
        self.param = param
        self.headers = headers or {}

    @property
    def by_request(self) -> bool:
        """Whether an upstream found the request itself wrong: nothing for an operator to mend."""
        return False

    def body(self) -> dict[str, dict[str, str | None]]:
        """The `{"error": …}` object of OpenAI's API."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class RequestError(ProxyError):
    status = 400
    type = "invalid_request_error"


class ModelNotFound(RequestError):
    status = 404
    code = "model_not_found"


class Unauthorized(RequestError):
    status = 401
    code = "invalid_api_key"


class RateLimited(RequestError):
    status = 429
    type = "requests"
    code = "rate_limit_exceeded"


class Overloaded(ProxyError):
    status = 503
    code = "overloaded"


class DeadlineExceeded(ProxyError):
    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


class UpstreamError(ProxyError):
    status = 502
    type = "upstream_error"
    code = "upstream_error"

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed elsewhere, or a moment later."""
        return True


class UpstreamUnreachable(UpstreamError):
    code = "upstream_unreachable"


class UpstreamDown(UpstreamError):
    """No upstream that could write the reply is asked at present. `retry-after` says until when."""

    status = 503
    code = "upstream_unreachable"

    @property
    def transient(self) -> bool:
        return False  # asked again at once, the answer would be the same


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"


# Of refusals these are worth a second try; 529 is what an overloaded Anthropic answers.
_TRANSIENT = frozenset((408, 429, 500, 502, 503, 504, 529))


class UpstreamRejected(UpstreamError):
    code = "upstream_rejected"

    @property
    def by_request(self) -> bool:
        return self.status in (400, 413, 422)

    @property
    def transient(self) -> bool:
        return self.status in _TRANSIENT and self.code != "upstream_credentials"


class UpstreamGarbled(UpstreamError):
    code = "upstream_garbled"


class ContinuationFailed(UpstreamError):
    """Asked to continue a text, the upstream refused, or began the answer again.

    Raised before any of the new text was handed out, so whoever kept the old branch can go on.
    """

    code = "continuation_failed"

    @property
    def transient(self) -> bool:
        return False


class ReviewError(ProxyError):
    status = 502
    type = "aligner_error"
    code = "review_failed"

    @property
    def illness(self) -> bool:
        """Whether it speaks against the aligner itself, and not against one text. What a client can
        bring about by what it writes must not: the breaker would open for everybody."""
        return True


class Unreviewable(ReviewError):
    @property
    def illness(self) -> bool:
        return False


class AlignerUnavailable(ReviewError):
    """The aligner is not asked at present. `retry-after` says until when."""

    status = 503
    code = "aligner_unavailable"

    @property
    def illness(self) -> bool:
        return False


class ConfigError(Exception):
    """Configuration that cannot work. The message starts with the key's path."""
