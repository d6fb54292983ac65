"""Which library, in which version, computes behind a backend."""

from importlib import metadata

from labkit.server.native import recipe

NATIVE, STAND_IN = "native", "stand-in"  # what serves here: Triton's own backends, or Python's
ENGINES = {  # backend → the library's name, and its package
    "onnxruntime": ("ONNX Runtime", "onnxruntime"),
    "openvino": ("OpenVINO", "openvino"),
    "pytorch": ("PyTorch", "torch"),
}


def two_onnxruntimes() -> str:
    """Say where the native backend's ONNX Runtime is not the environment's; empty when it is.

    A comparison of served and in-process would then be one of two engines.
    """
    native = recipe.ONNXRUNTIME_OPENVINO.version
    try:
        here = metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return ""
    if native == here:
        return ""
    return (
        f"native backends have ONNX Runtime {native}, this environment {here}: pip install "
        f"onnxruntime=={native} makes them one, LABKIT_RUNTIME=native serves all the same"
    )


def engine_of(backend: str, runtime: str) -> str:
    """Return the engine behind a backend, such as `ONNX Runtime 1.24.1`, and its own precision.

    Args:
        backend: As in a configuration.
        runtime: `native`, `stand-in` or `container`, as `choose_runtime` returns it.
    """
    if runtime == "container" or backend not in ENGINES:
        return f"{ENGINES.get(backend, (backend,))[0]} of the official image"
    name, package = ENGINES[backend]
    if runtime == NATIVE and backend == "onnxruntime":
        return f"{name} {recipe.ONNXRUNTIME_OPENVINO.version}"  # built in, not the environment's
    found = f"{name} {metadata.version(package)}"
    return f"{found}, float layers in {own_precision()}" if backend == "openvino" else found


def own_precision() -> str:
    """Return what OpenVINO computes in by itself: `f32`, or `bf16` where the processor has it.

    The openvino backend has no parameter that says otherwise; the other engines compute in the
    types of the file, and so does ONNX Runtime's OpenVINO provider.
    """
    import openvino

    return openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
