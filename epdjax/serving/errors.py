"""What can go wrong with a request, in words its sender can act on. Each error costs only its own request."""


class RequestError(Exception):
    """A request that gets no answer; `status` and `code` are what an OpenAI-style error response carries."""

    status = 400
    code = "invalid_request"
    kind = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None):
        super().__init__(message)
        self.message = message
        self.param = param

    def name(self, path: str) -> None:
        """Say which part of the request it is about."""
        self.message, self.param = f"{path}: {self.message}", path
        self.args = (self.message,)


class InvalidRequest(RequestError):
    """Something in the request is wrong: the message names it and says what to change."""


class MediaError(RequestError):
    """A picture, video or clip that cannot be fetched, decoded or afforded."""

    code = "invalid_media"


class TooLong(RequestError):
    """The prompt, or prompt and answer together, can never fit the limits of this deployment."""

    code = "context_length_exceeded"


class Overloaded(RequestError):
    """Every queue is bounded, and this one is full."""

    status = 429
    code = "overloaded"
    kind = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_s: float):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServiceUnavailable(RequestError):
    """The engine is shutting down, or nothing is left that could serve a stage."""

    status = 503
    code = "service_unavailable"
    kind = "server_error"


class EngineEnded(ServiceUnavailable):
    """The engine has ended, or is about to, and does nothing any more that it is asked to."""


class StepFailed(RequestError):
    """A step this request took part in raised on its device."""

    status = 500
    code = "step_failed"
    kind = "server_error"


class NotFinite(RequestError):
    """The model's numbers for this request overflowed or were not numbers."""

    status = 500
    code = "not_finite"
    kind = "server_error"


class PreprocessingFailed(RequestError):
    """The model's processor raised something that is not the sender's fault, as far as one can tell."""

    status = 500
    code = "preprocessing_failed"
    kind = "server_error"


class AnswerFailed(RequestError):
    """A token could not be turned into text, or an answer not be handed over."""

    status = 500
    code = "answer_failed"
    kind = "server_error"


class DeadlineExceeded(RequestError):
    """A request was not finished within the time it was given."""

    status = 504
    code = "deadline_exceeded"
    kind = "server_error"
