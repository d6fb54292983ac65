"""Python stand-ins for Triton's onnxruntime, openvino and pytorch backends.

Triton serves `backend: "onnxruntime"` with `<backend-directory>/onnxruntime/model.py` where there
is no shared library of that backend: one model repository loads here and in the official image.
"""
