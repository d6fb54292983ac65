"""The versions of an ONNX file's format, and the newest that the official container reads."""

from pathlib import Path

# The newest formats that ONNX Runtime 1.19 reads, which is the one in Triton 24.10.
MAX_IR_VERSION = 10
MAX_OPSET = 21


def onnx_versions(path: Path) -> tuple[int, int]:
    """Return IR version and opset of an ONNX file; zeros where it cannot be read."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # of protobuf, without a common base
        return 0, 0
    opset = next((entry.version for entry in model.opset_import if not entry.domain), 0)
    return model.ir_version, opset
