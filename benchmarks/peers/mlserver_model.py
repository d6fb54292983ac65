"""A custom model of MLServer that runs an ONNX file; MLServer's adaptive batching makes batches."""

import os

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """Images (N, 3, 32, 32) float32 to logits (N, 10) float32."""

    async def load(self) -> bool:
        """Open the session."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        path = os.environ["MODEL"]
        self.session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one batch."""
        images = NumpyCodec.decode_input(payload.inputs[0])
        logits = self.session.run(None, {"input": images})[0]
        output = NumpyCodec.encode_output("logits", logits)
        return InferenceResponse(model_name=self.name, outputs=[output])
