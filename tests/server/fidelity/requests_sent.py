"""The requests of the fidelity test: name → model, body, headers, path."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PIXELS = np.random.default_rng(1).random((9, 3, 32, 32), dtype=np.float32)
ROW, TENS = np.array([[1, 2, 3, 4]], np.float32), np.array([[10, 20, 30, 40]], np.float32)
TABLE = np.arange(1, 9, dtype=np.float32).reshape(2, 4)
NAMES = {"FP32": "f4", "FP64": "f8", "FP16": "f2", "INT8": "i1", "INT64": "i8"}


@dataclass
class Sent:
    """One request.

    Attributes:
        name: As in the table of answers.
        model: That must be loaded; None where there is none.
        body: Of the POST.
        headers: Of it.
        path: Of the URL; that of an inference where empty.
    """

    name: str
    model: str | None
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    path: str = ""


def tensor(name: str, array: np.ndarray, **other: Any) -> tuple[dict[str, Any], bytes]:
    """Return an input, and its bytes."""
    kinds = {np.dtype(code): kind for kind, code in NAMES.items()}
    entry = {
        "name": name,
        "shape": list(array.shape),
        "datatype": kinds[array.dtype],
        "parameters": {"binary_data_size": array.nbytes},
    }
    return entry | other, array.tobytes()


def sent(
    name: str,
    model: str | None,
    inputs: Sequence[tuple[dict[str, Any], bytes]],
    outputs: Sequence[Any] = (),
    path: str = "",
    **more: Any,
) -> Sent:
    """Return a request; an output that is a word is asked for in binary."""
    asked = [
        {"name": o, "parameters": {"binary_data": True}} if isinstance(o, str) else o
        for o in outputs
    ]
    header: dict[str, Any] = {"inputs": [entry for entry, _ in inputs], **more}
    if asked:
        header["outputs"] = asked
    text = json.dumps(header).encode()
    body = text + b"".join(raw for _, raw in inputs)
    return Sent(name, model, body, {"Inference-Header-Content-Length": str(len(text))}, path)


def all_requests() -> Iterator[Sent]:
    """Return every request, in the order in which they were sent to the native backends."""
    for model in ("o_ok", "v_ok", "t_ok", "v_pad"):
        numbered = "__0" if model == "t_ok" else ""
        for request in _of_images(model, f"input{numbered}", f"logits{numbered}"):
            request.name = f"{model} {request.name}"
            yield request
    yield sent(
        "unknown model",
        None,
        [tensor("input", PIXELS[:1])],
        ["logits"],
        "/v2/models/nope/infer",
    )
    top = {"name": "logits", "parameters": {"classification": 3}}
    yield sent("o_labels classification 3", "o_labels", [tensor("input", PIXELS[:2])], [top])
    yield from _of_two_inputs()
    yield from _of_torchscript()
    yield from _of_openvino()
    yield from _of_onnx()


def _of_images(model: str, x: str, y: str) -> Iterator[Sent]:
    two = PIXELS[:2]

    def good(name: str, pixels: np.ndarray, **other: Any) -> Sent:
        return sent(name, model, [tensor(x, pixels, **other)], [y])

    yield good("good 2", two)
    yield good("good 8", PIXELS[:8])
    yield good("shape [2,3,32,31]", two[..., :31].copy())
    yield good("shape [3,32,32]", two[0])
    yield good("shape [2,3072]", two.reshape(2, 3072))
    for kind in ("FP64", "FP16", "INT8", "INT64"):
        yield good(f"dtype {kind}", two.astype(NAMES[kind]))
    yield good("dtype FLOAT", two, datatype="FLOAT")
    yield sent("input name image", model, [tensor("image", two)], [y])
    yield sent("inputs []", model, [], [y])
    yield Sent("no inputs key", model, json.dumps({"outputs": [{"name": y}]}).encode())
    yield good("batch 9", PIXELS)
    entry, raw = tensor(x, two)
    short = entry | {"parameters": {"binary_data_size": 100}}
    long = entry | {"parameters": {"binary_data_size": two.nbytes + 4}}
    yield sent("short: size 100", model, [(short, raw[:100])], [y])
    yield sent("short: body cut", model, [(entry, raw[:100])], [y])
    yield sent("long: size+4", model, [(long, raw + b"abcd")], [y])
    yield sent("long: 4 spare bytes", model, [(entry, raw + b"abcd")], [y])
    bare = {"name": x, "shape": [2, 3, 32, 32], "datatype": "FP32"}
    yield sent("no binary_data_size", model, [(bare, raw)], [y])
    yield sent("unknown output", model, [(entry, raw)], ["scores"])
    odd = two.copy()
    odd[0, 0, 0, 0] = np.nan
    yield good("NaN binary", odd)
    yield sent("NaN, JSON answer", model, [tensor(x, odd)], [{"name": y}])
    odd = two.copy()
    odd[0] = np.inf
    yield good("Inf binary", odd)
    yield good("batch 0", two[:0])
    yield good("shape -1", two, shape=[-1, 3, 32, 32])
    one = {"name": x, "shape": [1, 3, 32, 32], "datatype": "FP32"}
    for name, data in (
        ("too few", [1.0, 2.0]),
        ("strings", ["a"] * 3072),
        ("nested ok", two[:1].tolist()),
    ):
        yield sent(f"JSON data, {name}", model, [(one | {"data": data}, b"")], [{"name": y}])
    yield Sent("bad JSON", model, b"{inputs")
    yield Sent("empty body", model, b"")
    for length in ("999999", "abc"):
        headers = {"Inference-Header-Content-Length": length}
        yield Sent(f"header length {length}", model, b"{}", headers)
    path = f"/v2/models/{model}/versions/7/infer"
    yield sent("version 7", model, [(entry, raw)], [y], path)
    yield sent("input twice", model, [(entry, raw)] * 2, [y])
    yield sent("extra input", model, [(entry, raw), tensor("mask", two[:, :1, :1, 0].copy())], [y])
    for count in (3, 100, 0, -1):
        asked = {"name": y, "parameters": {"classification": count}}
        yield sent(f"classification {count}", model, [(entry, raw)], [asked])
    yield sent("no outputs key", model, [tensor(x, two[:1])])
    binary = {"binary_data_output": True}
    yield sent("binary_data_output", model, [(entry, raw)], parameters=binary, id="abc")
    yield sent("output twice", model, [(entry, raw)], [y, y])
    sequence = {"sequence_id": 5, "sequence_start": True, "priority": 3, "timeout": 1}
    yield sent("sequence_id", model, [(entry, raw)], parameters=sequence)


def _of_two_inputs() -> Iterator[Sent]:
    for model in ("o_two_in", "v_two_in", "t_two_in"):
        a, b, y = ("p__0", "q__1", "y__0") if model == "t_two_in" else ("a", "b", "y")
        yield sent(f"{model} good", model, [tensor(a, ROW), tensor(b, TENS)], [y])
        yield sent(f"{model} swapped in request", model, [tensor(b, TENS), tensor(a, ROW)], [y])
        yield sent(f"{model} missing input", model, [tensor(a, ROW)], [y])
        batches = [tensor(a, np.tile(ROW, (2, 1))), tensor(b, np.tile(TENS, (3, 1)))]
        yield sent(f"{model} batch 2 and 3", model, batches, [y])


def _of_torchscript() -> Iterator[Sent]:
    for model, names in (
        ("t_args_2", ["a", "b"]),
        ("t_args_rev", ["b", "a"]),
        ("t_num_rev", ["q__1", "p__0"]),
        ("t_mixed", ["a", "p__1"]),
        ("t_mixfree", ["foo", "a"]),
        ("t_free1_2", ["foo", "bar"]),
        ("t_dup", ["p__0", "q__0"]),
        ("t_gap", ["p__0", "q__2"]),
        ("t_dict", ["p", "q"]),
    ):
        about = f"config order {names}, first [1..4], second [10..40]; forward a-b"
        inputs = [tensor(names[0], ROW), tensor(names[1], TENS)]
        yield sent(f"{model} {about}", model, inputs, ["y__0"])
    for model, outputs in (
        ("t_two_out", ["y__0", "y__1"]),
        ("t_out_rev", ["y__0", "y__1"]),
        ("t_out_1of2", ["y__1"]),
        ("t_two_out", ["y__1"]),
        ("t_two_out", ["y__1", "y__0"]),
    ):
        yield sent(f"{model} x+1,2x outputs {outputs}", model, [tensor("x__0", ROW)], outputs)
    one = PIXELS[:1]
    for model, output in (
        ("t_out_name", "logits"),
        ("t_out_idx", "OUTPUT__5"),
        ("t_out_alpha", "OUTPUT__x"),
        ("t_out_single", "OUTPUT_0"),
        ("t_out_dims", "logits__0"),
        ("t_out_int64", "logits__0"),
        ("t_caps", "OUTPUT__0"),
        ("t_out_var", "logits__0"),
    ):
        name = "INPUT__0" if model == "t_caps" else "input__0"
        yield sent(f"{model} {output}", model, [tensor(name, one)], [output])
    yield sent("t_free1 foo", "t_free1", [tensor("foo", one)], ["logits__0"])
    half = tensor("input__0", one.astype("f2"))
    yield sent("t_in_fp16 FP16", "t_in_fp16", [half], ["logits__0"])
    narrow = tensor("input__0", one[..., :31].copy())
    yield sent("t_in_dims [1,3,32,31]", "t_in_dims", [narrow], ["logits__0"])
    for name, given in (
        ("[1,3,32,31] (fails in the model)", narrow),
        ("[1,3,32,32]", tensor("input__0", one)),
    ):
        yield sent(f"t_var {name}", "t_var", [given], ["logits__0"])
    yield sent("t_nobatch", "t_nobatch", [tensor("x__0", ROW)], ["y__0"])
    yield sent("t_nobatch0", "t_nobatch0", [tensor("x__0", ROW[0])], ["y__0"])


def _of_openvino() -> Iterator[Sent]:
    def images(name: str, model: str, rows: int, outputs: Sequence[str] = ("logits",)) -> Sent:
        return sent(f"{model} {name}", model, [tensor("input", PIXELS[:rows])], outputs)

    for rows in (3, 8, 9):
        yield images(f"batch {rows} (no padding)", "v_mbs8", rows)
    for rows in (4, 2):
        yield images(f"batch {rows}", "v_fixed_mbs4", rows)
    yield images("batch 8", "v_fixed_mbs8", 8)
    yield images("batch 1", "v_in_order", 1)
    yield images("batch 2", "v_in_order", 2)
    zeros = tensor("input", np.zeros((8, 3, 32, 32), np.float16))
    yield sent("v_in_fp16", "v_in_fp16", [zeros], ["logits"])
    yield sent("v_out_int64", "v_out_int64", [tensor("input", PIXELS[:8])], ["logits"])
    yield images("both outputs", "v_gpu_only", 2, ("logits", "probs"))
    for number, rows in enumerate((8, 2, 8, 8, 3)):
        yield images(f"padding sequence #{number} batch {rows}", "v_dyn", rows)
    for width in (2, 5):
        x = tensor("x", np.ones((8, width), np.float32))
        yield sent(f"v_dynw_m1 w={width} batch 8", "v_dynw_m1", [x], ["y"])


def _of_onnx() -> Iterator[Sent]:
    two = [tensor("input", PIXELS[:2])]
    yield sent("o_out_missing logits", "o_out_missing", two, ["logits"])
    about = "probs (in file, not in config)"
    yield sent(f"o_out_missing {about}", "o_out_missing", two, ["probs"])
    for name, index in (("ok", 2), ("index 99999", 99999)):
        yield sent(f"o_gather {name}", "o_gather", [tensor("i", np.array([[1, index]]))], ["y"])
    yield from _of_strings()
    table, three = tensor("x", TABLE), np.array([3], np.float32)
    for shape, scalar in (([1], three), ([], three), ([2], np.array([3, 4], np.float32))):
        given = [table, tensor("s", scalar, shape=shape)]
        yield sent(f"o_sc_1 scalar as {shape}", "o_sc_1", given, ["y"])
    yield sent("o_so_1 scalar out", "o_so_1", [table], ["y"])
    flat = tensor("input", PIXELS[:2].reshape(2, 3072))
    yield sent("o_reshape", "o_reshape", [flat], ["logits"])
    yield sent("o_reshape_out", "o_reshape_out", two, ["logits"])
    numbers = np.array([1, 2, 3], np.float32)
    yield sent("o_vec_reshape", "o_vec_reshape", [tensor("x", numbers.reshape(3, 1))], ["y"])
    yield sent("o_vec_mbs0", "o_vec_mbs0", [tensor("x", numbers)], ["y"])
    for width in (2, 5):
        x = tensor("x", np.ones((2, width), np.float32))
        yield sent(f"o_dynw_m1 w={width}", "o_dynw_m1", [x], ["y"])
    yield sent("o_dynout_m1 rows", "o_dynout_m1", [table], ["y"])
    none = tensor("x", np.zeros((1, 4), np.float32))
    yield sent("o_dynout_m1 no rows", "o_dynout_m1", [none], ["y"])
    for rows, given in ((1, ROW), (2, TABLE)):
        about = f"o_dynout_mbs8 batch {rows} → {4 * rows} rows"
        yield sent(about, "o_dynout_mbs8", [tensor("x", given)], ["y"])
    many = tensor("input", np.concatenate([PIXELS] * 3)[:20])
    yield sent("o_mbs0_ok batch 20", "o_mbs0_ok", [many], ["logits"])
    yield sent("o_fixed_mbs0 batch 2", "o_fixed_mbs0", two, ["logits"])


def _of_strings() -> Iterator[Sent]:
    word = {"name": "x", "shape": [1, 1], "datatype": "BYTES"}
    spoken = (word | {"data": ["héllo"]}, b"")
    yield sent("o_string ok JSON", "o_string", [spoken], [{"name": "y"}])
    for name, raw in (
        ("not UTF-8", b"\x02\x00\x00\x00\xff\xfe"),
        ("broken length", b"\x09\x00\x00\x00ab"),
        ("with NUL", b"\x03\x00\x00\x00a\x00b"),
    ):
        entry = word | {"parameters": {"binary_data_size": len(raw)}}
        yield sent(f"o_string {name}", "o_string", [(entry, raw)], ["y"])
