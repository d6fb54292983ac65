"""Figures of the export: the graph's operators, what folding removes, and speed as ratios."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch

from labkit.compare import Comparison
from labkit.plots.style import BLUE, BRIGHT_YELLOW, GREEN, GREY, PURPLE, SKY, subplots, whiskers

_COLOURS = {
    "Conv": BLUE,
    "MatMul": BLUE,
    "Gemm": BLUE,
    "Relu": GREEN,
    "MaxPool": SKY,
    "GlobalAveragePool": SKY,
    "QuantizeLinear": PURPLE,
    "DequantizeLinear": BRIGHT_YELLOW,
}
_PER_ROW = 6
_BOX = (0.86, 0.56)  # width and height of a box, in grid cells


def operator_graph(model: onnx.ModelProto) -> Figure:
    """Draw an ONNX graph: one box for each operator, with what it computes and its output shape.

    What is computed from weights alone is left out, such as the dequantization of a kernel.

    Args:
        model: With inferred shapes, such as `onnx.shape_inference.infer_shapes` returns. Drawn in
            rows of six, so it suits graphs of up to about forty operators.
    """
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    nodes = _data_path(model, weights)
    rows = -(-len(nodes) // _PER_ROW)
    figure, axis = subplots(figsize=(10, 0.3 + 0.95 * rows))
    axis.set(xlim=(-0.55, _PER_ROW - 0.45), ylim=(-rows + 0.5, 0.55))
    axis.axis("off")
    shapes = _shapes(model)
    place = {node.name: (i % _PER_ROW, -(i // _PER_ROW)) for i, node in enumerate(nodes)}
    maker = {output: node.name for node in nodes for output in node.output}
    for node in nodes:
        for source in node.input:
            if source in maker:
                _arrow(axis, place[maker[source]], place[node.name])
        _box(axis, place[node.name], node, weights, shapes.get(node.output[0], ""))
    return figure


def _data_path(model: onnx.ModelProto, weights: dict[str, tuple[int, ...]]) -> list[onnx.NodeProto]:
    """Return the operators that images pass through, in order; enter the others into `weights`."""
    depth = {value.name: 0 for value in model.graph.input}
    kept = []
    for node in model.graph.node:
        before = [depth[name] for name in node.input if name in depth]
        if before:
            depth |= dict.fromkeys(node.output, 1 + max(before))
            kept.append(node)
        elif node.input:
            weights |= dict.fromkeys(node.output, weights.get(node.input[0], ()))
    return sorted(kept, key=lambda node: depth[node.output[0]])


def _shapes(model: onnx.ModelProto) -> dict[str, str]:
    """Return tensor → shape, as text such as `batch×24×31×31`."""
    values = [*model.graph.value_info, *model.graph.output]
    return {
        value.name: "×".join(
            d.dim_param or str(d.dim_value) for d in value.type.tensor_type.shape.dim
        )
        for value in values
    }


def _box(
    axis: Axes,
    place: tuple[int, int],
    node: onnx.NodeProto,
    weights: Mapping[str, tuple[int, ...]],
    shape: str,
) -> None:
    """Draw one operator."""
    (x, y), (width, height) = place, _BOX
    colour = _COLOURS.get(node.op_type, GREY)
    axis.add_patch(
        FancyBboxPatch(
            (x - width / 2 + 0.04, y - height / 2 + 0.04),
            width - 0.08,
            height - 0.08,
            boxstyle="round,pad=0.04",
            facecolor=colour,
            alpha=0.9,
            linewidth=0,
        )
    )
    weighted = node.op_type in ("Conv", "MatMul", "Gemm")
    kernel = weights.get(node.input[1], ()) if weighted else ()
    detail = {4: "{2}×{3}, {1} → {0}", 2: "{0} → {1}"}.get(len(kernel), "").format(*kernel)
    ink = "black" if colour in (BRIGHT_YELLOW, SKY) else "white"
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
    short = node.op_type.replace("Linear", "").replace("AveragePool", "AvgPool")
    axis.text(x, y + 0.14, short, fontsize=9, weight="bold", **style)
    axis.text(x, y - 0.01, detail, fontsize=7.5, **style)
    axis.text(x, y - 0.17, shape, fontsize=7, **style)


def _arrow(axis: Axes, start: tuple[int, int], end: tuple[int, int]) -> None:
    """Connect two boxes; a line to the next row runs between the rows."""
    half_width, half_height = _BOX[0] / 2, _BOX[1] / 2
    line: dict[str, Any] = {"color": GREY, "linewidth": 1.2}
    tail: tuple[float, float] = (start[0] + half_width, start[1])
    head: tuple[float, float] = (end[0] - half_width, end[1])
    if start[1] != end[1]:
        middle = (start[1] + end[1]) / 2
        axis.plot(
            [start[0], start[0], end[0], end[0]],
            [start[1] - half_height, middle, middle, middle],
            **line,
        )
        tail, head = (end[0], middle), (end[0], end[1] + half_height)
    axis.annotate("", head, tail, arrowprops={"arrowstyle": "->", **line})


def operator_counts(before: Counter[str], after: Counter[str]) -> Figure:
    """Compare how many operators of each kind a graph has before and after optimization."""
    kinds = sorted(set(before) | set(after), key=lambda kind: (before[kind], kind))
    figure, axis = subplots(figsize=(8, 0.8 + 0.34 * len(kinds)))
    for offset, counts, colour in ((0.2, before, GREY), (-0.2, after, BLUE)):
        bars = axis.barh(
            [i + offset for i in range(len(kinds))],
            [counts[kind] for kind in kinds],
            height=0.38,
            color=colour,
        )
        axis.bar_label(bars, padding=3, fontsize=9)
    axis.set_yticks(range(len(kinds)), [kind.removeprefix("aten::").strip("_") for kind in kinds])
    axis.set(xlabel="operators in the graph", xlim=(0, 1.12 * max(before.values())))
    axis.set_title(f"{before.total()} operators traced, {after.total()} after freezing")
    axis.legend(
        handles=[Patch(color=GREY, label="traced"), Patch(color=BLUE, label="frozen")],
        loc="lower right",
    )
    axis.grid(axis="y", visible=False)
    return figure


def ratios(comparison: Comparison) -> Figure:
    """Show how fast each runner is, relative to the baseline of the same round."""
    names = sorted(comparison.ratio, key=lambda name: comparison.ratio[name].median)
    figure, axis = subplots(figsize=(8, 1.0 + 0.42 * len(names)))
    ratio_bars(axis, comparison, names)
    axis.set_xlabel(
        f"images/s relative to {comparison.baseline}\n"
        f"(median of {comparison.ratio[names[0]].n} rounds; whiskers: smallest and largest)"
    )
    axis.set_title(f"Speed at batch {comparison.batch}, {threads_text(comparison.threads)}")
    return figure


def ratio_bars(axis: Axes, comparison: Comparison, names: list[str]) -> None:
    """Draw ratios as horizontal bars with their smallest and largest value, on a given axis."""
    spreads = [comparison.ratio[name] for name in names]
    medians = [spread.median for spread in spreads]
    colours = [GREY if name == comparison.baseline else SKY for name in names]
    axis.barh(
        names, medians, xerr=whiskers(spreads), color=colours, ecolor="black", capsize=3, height=0.6
    )
    largest = max(spread.high for spread in spreads)
    for row, spread in enumerate(spreads):
        axis.text(spread.high + 0.02 * largest, row, f"{spread.median:.2f}×", va="center")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlim(0, 1.2 * largest)
    axis.grid(axis="y", visible=False)


def threads_text(threads: int) -> str:
    """Return `1 thread` or `2 threads`."""
    return f"{threads} thread" + ("s" if threads != 1 else "")
