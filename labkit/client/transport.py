"""The two libraries of tritonclient behind one set of methods; they raise what they raise."""

import contextlib
from typing import Any

from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from labkit.client.tensors import Arrays

GRPC_CHANNEL_ARGS = [
    ("grpc.max_send_message_length", 2**31 - 1),  # Triton's own limit, INT32_MAX bytes
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.enable_http_proxy", 0),  # the lab's servers are on this machine
]


class HttpTransport:
    """Speak the KServe v2 protocol over HTTP."""

    def __init__(self, url: str, timeout_s: float):
        import tritonclient.http as library

        self._library = library
        self._client = library.InferenceServerClient(
            url, connection_timeout=timeout_s, network_timeout=timeout_s
        )
        self._is_triton = False

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def live(self) -> bool:
        """Say whether the process answers."""
        self._require_triton()
        return self._client.is_server_live()

    def ready(self, model: str | None = None) -> bool:
        """Say whether the server, or one model, takes requests."""
        self._require_triton()
        return self._client.is_model_ready(model) if model else self._client.is_server_ready()

    def _require_triton(self) -> None:
        """Ask once for metadata: Triton's metrics port says 200 to any path.

        While the server starts or exits it refuses metadata; that is an answer of Triton's too.
        """
        if not self._is_triton:
            with contextlib.suppress(InferenceServerException):
                self._client.get_server_metadata()
            self._is_triton = True

    def server(self) -> dict[str, Any]:
        """Return name, version, extensions."""
        return self._client.get_server_metadata()

    def index(self) -> list[dict[str, Any]]:
        """Return every model the server knows of."""
        return self._client.get_model_repository_index()

    def metadata(self, model: str) -> dict[str, Any]:
        """Return the model's tensors."""
        return self._client.get_model_metadata(model)

    def config(self, model: str) -> dict[str, Any]:
        """Return the model's configuration."""
        return self._client.get_model_config(model)

    def infer(self, model: str, arrays: Arrays, outputs: list[str], binary: bool = True) -> Arrays:
        """Send one request; return {output name: array}."""
        tensors = []
        for name, array in arrays.items():
            datatype = np_to_triton_dtype(array.dtype)
            tensor = self._library.InferInput(name, list(array.shape), datatype)
            tensors.append(tensor.set_data_from_numpy(array, binary_data=binary))
        wanted = [self._library.InferRequestedOutput(o, binary_data=binary) for o in outputs]
        result = self._client.infer(model, tensors, outputs=wanted)
        return {name: result.as_numpy(name) for name in outputs}


class GrpcTransport:
    """Speak the KServe v2 protocol over gRPC."""

    def __init__(self, url: str, timeout_s: float):
        import tritonclient.grpc as library

        self._library = library
        self._wait = {"client_timeout": timeout_s}
        self._client = library.InferenceServerClient(url, channel_args=GRPC_CHANNEL_ARGS)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def live(self) -> bool:
        """Say whether the process answers."""
        return self._client.is_server_live(**self._wait)

    def ready(self, model: str | None = None) -> bool:
        """Say whether the server, or one model, takes requests."""
        if model:
            return self._client.is_model_ready(model, **self._wait)
        return self._client.is_server_ready(**self._wait)

    def server(self) -> dict[str, Any]:
        """Return name, version, extensions."""
        return plain(self._client.get_server_metadata(**self._wait))

    def index(self) -> list[dict[str, Any]]:
        """Return every model the server knows of."""
        return plain(self._client.get_model_repository_index(**self._wait))["models"]

    def metadata(self, model: str) -> dict[str, Any]:
        """Return the model's tensors."""
        return plain(self._client.get_model_metadata(model, **self._wait))

    def config(self, model: str) -> dict[str, Any]:
        """Return the model's configuration."""
        return plain(self._client.get_model_config(model, **self._wait))["config"]

    def infer(self, model: str, arrays: Arrays, outputs: list[str], binary: bool = True) -> Arrays:
        """Send one request; return {output name: array}."""
        tensors = []
        for name, array in arrays.items():
            datatype = np_to_triton_dtype(array.dtype)
            tensor = self._library.InferInput(name, list(array.shape), datatype)
            tensors.append(tensor.set_data_from_numpy(array))
        wanted = [self._library.InferRequestedOutput(o) for o in outputs]
        result = self._client.infer(model, tensors, outputs=wanted, **self._wait)
        return {name: result.as_numpy(name) for name in outputs}


def plain(message: Any) -> dict[str, Any]:
    """Turn a protobuf message into a dict with the shape of the HTTP answer: ints stay ints."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            result[field.name] = {
                k: _plain_value(field.message_type.fields[1], v) for k, v in value.items()
            }
        elif _is_repeated(field):
            result[field.name] = [_plain_value(field, item) for item in value]
        elif not field.has_presence or message.HasField(field.name):
            result[field.name] = _plain_value(field, value)
    return result


def _is_repeated(field: Any) -> bool:
    # protobuf 6.31 and later; the property replaces `label`, which newer releases warn about
    return (
        field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
    )


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type:
        return plain(value)
    if field.enum_type:
        return field.enum_type.values_by_number[value].name
    return value
