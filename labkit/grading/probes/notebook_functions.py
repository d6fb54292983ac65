"""A function out of a student's notebook, without running the notebook.

Only definitions are executed: imports, functions, classes and simple assignments, each of which may
fail alone. Nothing trains, downloads or starts a server.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from forked import describe

PARSE_ERRORS = (SyntaxError, ValueError, RecursionError, MemoryError)

DEFINITIONS = (
    ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Pass,
)  # fmt: skip
# Expressions, and parts of them, that make a value from values that are there.
SIMPLE = (
    ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.Starred,
    ast.Tuple, ast.List, ast.Set, ast.Dict, ast.JoinedStr, ast.FormattedValue,
    ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension,
    ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Lambda, ast.keyword,
    ast.expr_context, ast.unaryop, ast.operator, ast.boolop, ast.cmpop,
)  # fmt: skip
# Calls that only make a value; any other may train, and is not executed.
MAKERS = frozenset(
    {"bool", "dict", "float", "frozenset", "int", "len", "list", "range", "set", "str", "tuple"}
)
MAKERS_IN = frozenset({"functools", "math", "np", "numpy", "re", "torch"})


def find_function(notebook: Path, name: str, given: dict[str, Any]) -> Callable[..., Any]:
    """Execute a notebook's definitions and return one of its functions.

    Cells after the one that defines the function only add names that are not there yet: they come
    later in the notebook, and shall not replace a name under the function's feet.

    Args:
        notebook: An .ipynb file; its cells need not all be valid Python.
        name: Of the function; the last definition counts.
        given: Variables that cells before the function would have made.

    Raises:
        NameError: the notebook does not define it; the message says what failed on the way.
        ValueError, KeyError, TypeError: the file is not a notebook.
    """
    problems: list[str] = []
    sources = enumerate(code_cells(notebook), start=1)
    bodies = {number: parse_cell(source, number, problems) for number, source in sources}
    home = max((n for n, body in bodies.items() if name in names_of(body)), default=0)
    namespace: dict[str, Any] = {"__name__": "__main__", **given}
    for number, body in bodies.items():
        for statement in filter(is_definition, body):
            if number <= home or not names_of([statement]) <= namespace.keys():
                execute(statement, namespace, number, problems)
    namespace.update(given)
    function = namespace.get(name)
    if not callable(function):
        raise NameError("; ".join([f"the notebook defines no function {name}", *problems[:2]]))
    return function


def code_cells(notebook: Path) -> list[str]:
    """Return the sources of a notebook's code cells."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def parse_cell(source: str, number: int, problems: list[str]) -> list[ast.stmt]:
    """Parse a cell; where it is no Python as it is, without IPython's own lines."""
    try:
        return ast.parse(source).body
    except PARSE_ERRORS:
        pass
    try:
        return ast.parse(re.sub(r"(?m)^(\s*)[%!?].*$", r"\1pass", source)).body
    except PARSE_ERRORS as error:
        problems.append(f"code cell {number}: {describe(error)}")
        return []


def is_definition(statement: ast.stmt) -> bool:
    """Say whether a statement only defines something, and takes no time."""
    if isinstance(statement, DEFINITIONS):
        return True
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return statement.value is not None and is_simple(statement.value)
    if isinstance(statement, ast.If):
        inner = [*statement.body, *statement.orelse]
        return is_simple(statement.test) and all(map(is_definition, inner))
    if isinstance(statement, ast.Try):
        handled = [inner for handler in statement.handlers for inner in handler.body]
        inner = [*statement.body, *handled, *statement.orelse, *statement.finalbody]
        return all(map(is_definition, inner))
    return False


def is_simple(part: ast.AST) -> bool:
    """Say whether an expression only makes a value from values that are there."""
    if isinstance(part, ast.Lambda):
        return True  # its body does not run
    if isinstance(part, ast.Call):
        root = part.func
        while isinstance(root, ast.Attribute):
            root = root.value
        known = MAKERS if root is part.func else MAKERS_IN
        if not isinstance(root, ast.Name) or root.id not in known:
            return False
    elif not isinstance(part, SIMPLE):
        return False
    return all(map(is_simple, ast.iter_child_nodes(part)))


def names_of(statements: list[ast.stmt]) -> set[str]:
    """Return the names that statements bind in the notebook's namespace."""
    names: set[str] = set()
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            nodes = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
            names |= {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
        else:
            children = ast.iter_child_nodes(statement)
            names |= names_of([child for child in children if isinstance(child, ast.stmt)])
    return names


def execute(
    statement: ast.stmt, namespace: dict[str, Any], number: int, problems: list[str]
) -> None:
    """Execute one statement; a failure is noted, and harms no other."""
    try:
        module = ast.Module([statement], type_ignores=[])
        exec(compile(module, f"<code cell {number}>", "exec"), namespace)
    except BaseException as error:  # SystemExit too
        problems.append(f"code cell {number}: {describe(error)}")


def imports_of(notebook: Path) -> Iterator[str]:
    """Yield the names of the modules that a notebook may import on top level."""
    for number, source in enumerate(code_cells(notebook)):
        for statement in parse_cell(source, number, []):
            if isinstance(statement, ast.Import):
                yield from (alias.name for alias in statement.names)
            elif isinstance(statement, ast.ImportFrom) and statement.module:
                yield statement.module
                yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
