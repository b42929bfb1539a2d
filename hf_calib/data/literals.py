"""Parse lists and dicts that pandas and numpy wrote as text."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from typing import Any


_WRAPPERS = ("array", "tensor", "float16", "float32", "float64", "int32", "int64", "str_")


def parse_literal(text: str) -> Any:
    """
    Parse a Python literal, also one with arrays, as `DataFrame.to_csv` writes it.

    Args:
        text (`str`):
            E.g. `['a', 'b']`, `['a' 'b']` (a numpy array), `{'text': array(['a', 'b'], dtype=object)}`, `[0.7 0.3]`,
            `[np.float64(0.7)]` or `tensor([0.7, 0.3])`.

    Raises:
        `ValueError`: the text is no literal.
    """
    usual = not re.search(r"""['"\])]\s+['"\[]|\w\(|[\d.]\s+-?[\d.]""", text)
    try:
        if usual:  # fast
            return ast.literal_eval(text.strip())
        return ast.literal_eval(_Unwrapped().visit(ast.parse(_with_commas(text.strip()), mode="eval")))
    except (SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise ValueError(f"no literal: {error}") from None


def _with_commas(text: str) -> str:
    """Separate values that have only white space between them: Python would join texts."""
    tokens, before = [], None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        value = token.type in (tokenize.STRING, tokenize.NUMBER)
        if before is not None and (value or token.string in ("[", "-")):
            tokens.append((tokenize.OP, ","))
        if token.type != tokenize.NL:
            before = token if value or token.string == "]" else None
            tokens.append((token.type, token.string))
    return tokenize.untokenize(tokens).strip()


class _Unwrapped(ast.NodeTransformer):
    """Replaces calls such as `array([...], dtype=object)` by what they hold."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        return self.visit(node.args[0]) if name in _WRAPPERS and len(node.args) == 1 else node
