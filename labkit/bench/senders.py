"""Asyncio clients for load: the request is encoded once, and answers are not decoded."""

from typing import Any, Protocol
from urllib.parse import quote

from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from labkit.bench.target import Target
from labkit.client import GRPC_CHANNEL_ARGS, plain


class Sender(Protocol):
    """One asyncio client that sends the same request again and again.

    The request is encoded once and answers are not decoded: on a machine that also runs the
    server, every microsecond here is taken from there.
    """

    async def send(self) -> str | None:
        """Ask once; return None for an answer, else the kind of error."""

    async def statistics(self) -> dict[str, Any]:
        """Read the model's counters."""

    async def close(self) -> None:
        """Close the connections."""


class HttpSender:
    """Over HTTP."""

    def __init__(self, target: Target, connections: int):
        import aiohttp
        from tritonclient import http as library

        self._errors = (OSError, aiohttp.ClientError)  # a closed connection is only the second
        inputs = [
            library.InferInput(
                name, list(array.shape), np_to_triton_dtype(array.dtype)
            ).set_data_from_numpy(array)
            for name, array in target.arrays.items()
        ]
        outputs = [library.InferRequestedOutput(name) for name in target.outputs]
        generate = library.InferenceServerClient.generate_request_body
        self._body, header_bytes = generate(inputs, outputs=outputs)
        self._headers = {
            "Inference-Header-Content-Length": str(header_bytes),
            **target.options.headers,
        }
        self._url = f"http://{target.url}/v2/models/{quote(target.model)}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections),
            timeout=aiohttp.ClientTimeout(total=target.options.timeout_s),
        )

    async def send(self) -> str | None:
        """Ask once; return None for an answer, else the kind of error."""
        try:
            async with self._session.post(
                f"{self._url}/infer", data=self._body, headers=self._headers
            ) as answer:
                content = await answer.read()
                return None if answer.status == 200 else f"HTTP {answer.status}: {content.decode()}"
        except TimeoutError:
            return "timeout"
        except self._errors as error:
            return type(error).__name__

    async def statistics(self) -> dict[str, Any]:
        """Read the model's counters."""
        async with self._session.get(f"{self._url}/stats") as answer:
            return (await answer.json(content_type=None))["model_stats"][0]

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


class GrpcSender:
    """Over gRPC."""

    def __init__(self, target: Target, connections: int):
        import grpc
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        self._error = grpc.aio.AioRpcError
        self._deadline = grpc.StatusCode.DEADLINE_EXCEEDED
        self._request = service_pb2.ModelInferRequest(model_name=target.model)
        for name, array in target.arrays.items():
            datatype = np_to_triton_dtype(array.dtype)
            self._request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            raw = serialize_byte_tensor(array).item() if datatype == "BYTES" else array.tobytes()
            self._request.raw_input_contents.append(raw)
        for name in target.outputs:
            self._request.outputs.add(name=name)
        self._statistics = service_pb2.ModelStatisticsRequest(name=target.model)
        self._timeout_s = target.options.timeout_s
        self._metadata = [(name.lower(), text) for name, text in target.options.headers.items()]
        self._channel = grpc.aio.insecure_channel(target.url, options=GRPC_CHANNEL_ARGS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def send(self) -> str | None:
        """Ask once; return None for an answer, else the kind of error."""
        try:
            await self._stub.ModelInfer(
                self._request, timeout=self._timeout_s, metadata=self._metadata
            )
        except self._error as error:
            if error.code() is self._deadline:
                return "timeout"
            return f"gRPC {error.code().name}: {error.details()}"
        return None

    async def statistics(self) -> dict[str, Any]:
        """Read the model's counters."""
        answer = await self._stub.ModelStatistics(self._statistics, timeout=self._timeout_s)
        return plain(answer)["model_stats"][0]

    async def close(self) -> None:
        """Close the connections."""
        await self._channel.close()
