"""The small changes that ``mutants.py`` makes to a module: source in, changes out."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

_T = TypeVar("_T")

_BOUNDARY = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_FLIPPED = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
_SIBLINGS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True, slots=True)
class Mutation:
    """One small change to a module.

    Attributes:
        scope: The function it is in, with its classes; "" at the level of the module.
        before: What stands there, on one line.
        after: What would stand there; "" if it is dropped.
        lines: The lines of the changed code, first and last.
        at: First line of the statement that it is in.
        start: Offset of its first byte in the module.
        end: Offset behind its last byte.
        text: What to put there.
        in_function: Whether it runs when a function is called, and not when the module is imported.
    """

    scope: str
    before: str
    after: str
    lines: tuple[int, int]
    at: int
    start: int
    end: int
    text: str
    in_function: bool

    @property
    def change(self) -> str:
        """The change in words that stay the same when lines move."""
        return f"{self.before} -> {self.after}" if self.after else f"drop {self.before}"

    def apply(self, source: str) -> str:
        """The module with this change."""
        code = source.encode()
        return (code[: self.start] + self.text.encode() + code[self.end :]).decode()


def mutations_of(source: str) -> list[Mutation]:
    """Every change that is tried on a module, in the order of its lines.

    Left alone are texts, annotations, decorators, docstrings, what is only there for type
    checkers, and what is only logged.
    """
    maker = _Maker(source)
    maker.visit(ast.parse(source))
    unique = {(made.start, made.end, made.text): made for made in maker.made}
    return sorted(unique.values(), key=lambda made: (made.lines, made.start))


def _is_logging(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in {
        "logger",
        "warnings",
    }


class _Maker(ast.NodeVisitor):
    def __init__(self, source: str) -> None:
        self.made: list[Mutation] = []
        self._source = source
        self._scope: list[str] = []
        self._functions = 0
        self._at = 1

    @cached_property
    def _line_starts(self) -> list[int]:
        starts = [0]
        for line in self._source.encode().splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        return starts

    def _add(self, node: ast.expr | ast.stmt, text: str, after: str) -> None:
        assert node.end_lineno is not None  # noqa: S101 - of a node that was parsed
        assert node.end_col_offset is not None  # noqa: S101 - as above
        lines = node.lineno, node.end_lineno
        starts = self._line_starts
        start, end = (
            starts[lines[0] - 1] + node.col_offset,
            starts[lines[1] - 1] + node.end_col_offset,
        )
        before = ast.unparse(node)
        scope = ".".join(self._scope)
        made = Mutation(
            scope, before, after, lines, self._at, start, end, text, self._functions > 0
        )
        self.made.append(made)

    def _replace(self, node: ast.expr, other: ast.expr) -> None:
        text = ast.unparse(other)
        gap = "\n" * ((node.end_lineno or node.lineno) - node.lineno)
        self._add(node, f"({text}{gap})", text)

    def _drop(self, node: ast.stmt) -> None:
        self._put(node, "pass", "")

    def _put(self, node: ast.stmt, text: str, after: str) -> None:
        self._add(node, text + "\n" * ((node.end_lineno or node.lineno) - node.lineno), after)

    # Statements

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            self._at = node.lineno
        super().generic_visit(node)

    def _visit_scope(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self._at = node.lineno
        if not isinstance(node, ast.ClassDef):
            for default in [*node.args.defaults, *node.args.kw_defaults]:
                if default is not None:
                    self.visit(default)
        self._scope.append(node.name)
        self._functions += not isinstance(node, ast.ClassDef)
        for statement in node.body:
            self.visit(statement)
        self._functions -= not isinstance(node, ast.ClassDef)
        self._scope.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _visit_scope  # noqa: N815 - ast's

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._at = node.lineno
        if node.value is not None:
            if not isinstance(node.target, ast.Name):
                self._drop(node)
            self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant) and not _is_logging(node.value):
            self._drop(node)
            self.generic_visit(node)

    def _visit_droppable(self, node: ast.stmt) -> None:
        self._drop(node)
        self.generic_visit(node)

    visit_AugAssign = visit_Delete = _visit_droppable  # noqa: N815 - ast's
    visit_Raise = visit_Continue = visit_Break = _visit_droppable  # noqa: N815 - ast's

    def visit_Assign(self, node: ast.Assign) -> None:
        self._at = node.lineno
        if self._scope and not all(isinstance(target, ast.Name) for target in node.targets):
            self._drop(node)
        self.visit(node.value)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and ast.unparse(node.value) != "None":
            self._put(node, "return None", "return None")
        self.generic_visit(node)

    def _visit_branch(self, node: ast.If | ast.While | ast.IfExp | ast.Assert) -> None:
        if isinstance(node, ast.stmt):
            self._at = node.lineno
        if ast.unparse(node.test) != "TYPE_CHECKING":
            self._invert(node.test)
            self.generic_visit(node)

    visit_If = visit_While = visit_IfExp = visit_Assert = _visit_branch  # noqa: N815 - ast's

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._invert(test)
        self.generic_visit(node)

    def _invert(self, test: ast.expr) -> None:
        if not isinstance(test, ast.Compare | ast.Constant) and not (
            isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
        ):
            self._replace(test, ast.UnaryOp(ast.Not(), test))

    # Expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        for index, operator in enumerate(node.ops):
            for table in (_BOUNDARY, _FLIPPED):
                if other := table.get(type(operator)):
                    changed = copy.copy(node)
                    changed.ops = [*node.ops[:index], other(), *node.ops[index + 1 :]]
                    self._replace(node, changed)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        swapped = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self._replace(node, ast.BoolOp(swapped, node.values))
        for rest in _without_one(node.values):
            self._replace(node, rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._replace(node, node.operand)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text = any(
            isinstance(side, ast.JoinedStr)
            or (isinstance(side, ast.Constant) and isinstance(side.value, str))
            for side in (node.left, node.right)
        )
        if not text and (other := _ARITHMETIC.get(type(node.op))):
            self._replace(node, ast.BinOp(node.left, other(), node.right))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace(node, ast.Constant(not node.value))
        elif isinstance(node.value, int | float):
            self._replace(node, ast.Constant(node.value + 1))

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if other := _SIBLINGS.get(name):
            changed = copy.copy(node)
            changed.func = ast.Name(other)
            self._replace(node, changed)
        if name == "replace":
            for rest in _without_one(node.keywords):
                self._replace(node, ast.Call(node.func, node.args, rest))
        self.generic_visit(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        if isinstance(node.body, ast.Tuple):  # a key to sort by
            for rest in _without_one(node.body.elts):
                self._replace(node.body, ast.Tuple(rest, ast.Load()))
        self.visit(node.body)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Left alone: a text."""


def _without_one(items: list[_T]) -> Iterator[list[_T]]:
    for index in range(len(items)):
        yield items[:index] + items[index + 1 :]
