"""What a reader of a figure relies on: colours, units, and names inside the picture."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import FancyBboxPatch
from onnx import TensorProto, helper

from labkit import plots
from labkit.plots.report import BACKEND_COLOURS, VariantPoint


def points(clients: tuple[int, ...], rate: float) -> list[Any]:
    """Return stand-ins for measurements with a growing number of clients."""
    return [
        SimpleNamespace(
            images_per_s=SimpleNamespace(median=rate * (1 + 0.1 * i)),
            latency_ms=SimpleNamespace(p95=2.0 * n, max=3.0 * n),
            runs=[SimpleNamespace(clients=n)],
        )
        for i, n in enumerate(clients)
    ]


def variants() -> dict[str, dict[str, Any]]:
    spread = {"low": 90.0, "median": 100.0, "high": 120.0, "n": 3, "batch": 32}
    row = {"accuracy": 0.9, "n": 100, "throughput_images_s": spread}
    return {"cifar10_onnx": row, "cifar10_onnx_int8": row}


def test_the_colour_of_int8_is_no_backends() -> None:
    _, axis = plots.serving.variants(variants()).axes
    colours = [to_hex(bar.get_facecolor()) for bar in axis.patches]
    assert colours[0] != colours[1]
    assert colours[1] not in {to_hex(colour) for colour in BACKEND_COLOURS.values()}


def test_load_curves_say_which_point_has_the_name_and_that_the_axis_is_logarithmic() -> None:
    curves = {"1 × 1": points((1, 4, 16), 800), "2 × 1": points((1, 4, 16), 900)}
    (axis,) = plots.serving.load_curves(curves).axes
    assert axis.get_xlabel().endswith("points: 1, 4 and, large and named, 16 clients")
    assert axis.get_yscale() == "log"
    assert "logarithmic" in axis.get_ylabel()
    large = [line for line in axis.lines if len(line.get_xdata()) == 1]
    assert [float(line.get_ydata()[0]) for line in large] == [32.0, 32.0]


def test_channel_ranges_hold_for_any_number_of_bits() -> None:
    weights = np.array([[0.5, -0.1], [-2.0, 0.3], [1.0, 0.0]], dtype=np.float32)
    figure = plots.quantize.channel_ranges(weights)
    (axis,) = figure.axes
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([100, 50, 25])
    figure.canvas.draw()
    (label,) = axis.texts
    assert label.get_window_extent().x1 <= axis.get_window_extent().x1


def test_every_kind_of_operator_has_a_colour_of_its_own() -> None:
    kinds = ("QuantizeLinear", "DequantizeLinear", "Relu", "MaxPool")
    tensors = [helper.make_tensor_value_info(f"t{i}", TensorProto.FLOAT, [1]) for i in range(5)]
    nodes = [
        helper.make_node(kind, [f"t{i}"], [f"t{i + 1}"], name=kind) for i, kind in enumerate(kinds)
    ]
    graph = helper.make_graph(nodes, "kinds", [tensors[0]], [tensors[4]], value_info=tensors[1:4])
    model: onnx.ModelProto = helper.make_model(graph)
    (axis,) = plots.export.operator_graph(model).axes
    boxes = [patch for patch in axis.patches if isinstance(patch, FancyBboxPatch)]
    assert len({to_hex(box.get_facecolor()) for box in boxes}) == len(kinds)


def test_the_comparison_says_what_its_bars_and_lines_are() -> None:
    point = VariantPoint("cifar10_onnx", "onnxruntime", 0.9, 100, 100.0, 90.0, 120.0, 1.0, 2.0, 4.0)
    labels = [axis.get_xlabel() for axis in plots.report.variant_comparison([point]).axes]
    assert labels[0] == "images/s (median and range)"
