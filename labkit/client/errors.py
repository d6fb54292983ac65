"""What can go wrong with a request, the same for HTTP and gRPC."""

from labkit.errors import LabError


class ClientError(LabError):
    """A request that got no answer.

    Attributes:
        server_message: what the server said, word for word; "" when it said nothing.
        status: the HTTP status ("400") or the gRPC code ("INVALID_ARGUMENT"); "" without a reply.
    """

    def __init__(self, message: str, *, server_message: str = "", status: str = ""):
        super().__init__(message)
        self.server_message = server_message
        self.status = status


class InvalidRequest(ClientError):
    """The server refused the request: HTTP 400, gRPC INVALID_ARGUMENT."""


class BadInput(InvalidRequest):
    """The client refused the arrays before sending them."""


class NotFound(ClientError):
    """No such model or version: HTTP 404, gRPC NOT_FOUND."""


class ServerFault(ClientError):
    """The model or the server failed: HTTP 500, gRPC INTERNAL or UNKNOWN."""


class Unsupported(ClientError):
    """The server does not offer this: HTTP 501, gRPC UNIMPLEMENTED."""


class Unavailable(ClientError):
    """The server is up but would not take the request (loading, exiting, queue full): 503."""


class Unreachable(ClientError):
    """Nothing that speaks this protocol answers at this address."""


class Timeout(ClientError):
    """No answer within `timeout_s`."""


ERROR_OF_STATUS: dict[str, type[ClientError]] = {
    "400": InvalidRequest,
    "404": NotFound,
    "500": ServerFault,
    "501": Unsupported,
    "503": Unavailable,
    "499": Timeout,  # the client library's own status for an expired deadline
    "INVALID_ARGUMENT": InvalidRequest,
    "NOT_FOUND": NotFound,
    "INTERNAL": ServerFault,
    "UNKNOWN": ServerFault,
    "UNIMPLEMENTED": Unsupported,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": Timeout,
}
