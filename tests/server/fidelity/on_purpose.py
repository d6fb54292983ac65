"""Where a stand-in differs from the native backend on purpose, and why.

`labkit serve` refuses the same configurations before a native server starts.
"""

ARGUMENTS = "natively it loads, and each request fails or ends the server: refused with the names"
LOST_ROWS = "natively the rows of other requests are answered, in silence: an error here"

CONFIGURATIONS = {
    "t_dup": ARGUMENTS,
    "t_gap": ARGUMENTS,
    "t_out_idx": "natively it loads, and each request fails: refused with the number of outputs",
}
REQUESTS = {
    "t_dup config order ['p__0', 'q__0'], first [1..4], second [10..40]; forward a-b": ARGUMENTS,
    "t_gap config order ['p__0', 'q__2'], first [1..4], second [10..40]; forward a-b": ARGUMENTS,
    "t_out_idx OUTPUT__5": CONFIGURATIONS["t_out_idx"],
    "o_dynout_mbs8 batch 1 → 4 rows": LOST_ROWS,
    "o_dynout_mbs8 batch 2 → 8 rows": LOST_ROWS,
    "o_string not UTF-8": "ONNX Runtime's Python interface takes text only: refused in words",
}
# Natively, padding with changing batch sizes answers zeros, hangs and corrupts memory.
NO_EXAMPLE = ("v_pad good 8", "v_dyn padding sequence #3 batch 8")
# Words of the engines, of versions that differ from those that answered.
ENGINES_WORDS = {
    "o_empty": "ONNX Runtime's words for an empty file",
    "t_empty": "PyTorch's words for an empty file",
}
NATIVE_WORDS = {"o_empty": "ONNX Runtime 1.24 says it in other words than the 1.19 of that release"}
