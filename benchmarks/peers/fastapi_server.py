"""The usual hand-written server: FastAPI and ONNX Runtime, raw bytes in and out."""

import os

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, Request, Response

options = ort.SessionOptions()
options.intra_op_num_threads = int(os.environ["THREADS"])
session = ort.InferenceSession(os.environ["MODEL"], options, ["CPUExecutionProvider"])
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Answer images (N, 3, 32, 32) float32 with logits (N, 10) float32."""
    images = np.frombuffer(await request.body(), np.float32).reshape(-1, 3, 32, 32)
    logits = session.run(None, {"input": images})[0]
    return Response(logits.tobytes(), media_type="application/octet-stream")
