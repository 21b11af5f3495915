"""``scripts/mutants.py``: what it changes in a source, and which tests it tries that with."""

from __future__ import annotations

import ast
from pathlib import Path
from textwrap import dedent

import pytest
from _mutations import Mutation, mutations_of
from hypothesis import given
from hypothesis import strategies as st
from mutants import UNIT_S, Mutant, evenly, nearest, smallest, spread_over, uses, within
from sweeps import sweep

PACKAGE = Path(__file__).parents[1] / "tinker_recovery"


def changes(source: str) -> list[str]:
    return [made.change for made in mutations_of(dedent(source))]


def in_a_function(*lines: str) -> str:
    return "\n    ".join(["def f(a, b, c):", *lines]) + "\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.go()", ["drop a.go()"]),
        ("a.x = b", ["drop a.x = b"]),
        ("a.x: int = b", ["drop a.x: int = b"]),
        ("a = b", []),
        ("a += b", ["drop a += b"]),
        ("raise a", ["drop raise a"]),
        ("return a", ["return a -> return None"]),
        ("return None", []),
        ("return", []),
        ("a = b < c", ["b < c -> b <= c", "b < c -> b >= c"]),
        ("a = b >= c", ["b >= c -> b > c", "b >= c -> b < c"]),
        ("a = b == c", ["b == c -> b != c"]),
        ("a = b is not None", ["b is not None -> b is None"]),
        ("a = b in c", ["b in c -> b not in c"]),
        ("a = not b", ["not b -> b"]),
        ("a = b - c", ["b - c -> b + c"]),
        ("a = b * c", ["b * c -> b / c"]),
        ("a = 'x' + b", []),
        ("a = f'{b + c}'", []),
        ("a = 3", ["3 -> 4"]),
        ("a = True", ["True -> False"]),
        ("a = min(b, c)", ["min(b, c) -> max(b, c)"]),
        ("a = any(b)", ["any(b) -> all(b)"]),
        ("a = b and c", ["b and c -> b or c", "b and c -> c", "b and c -> b"]),
        ("a = b if c else a", ["c -> not c"]),
        ("a = [b for b in c if b]", ["b -> not b"]),
        ("a = lambda b: (b, c)", ["(b, c) -> (c,)", "(b, c) -> (b,)"]),
        ("a = replace(b, c=a)", ["replace(b, c=a) -> replace(b)"]),
        ("logger.warning('x', 1)", []),
        ("a: int | None = b", []),
    ],
)
def test_each_kind_of_line_is_changed_as_it_says(line: str, expected: list[str]) -> None:
    assert changes(in_a_function(line)) == expected


def test_a_condition_is_inverted_once_and_a_loop_is_left_and_taken_up() -> None:
    source = in_a_function("while a:", "    if b.x:", "        continue", "    break")
    assert changes(source) == ["a -> not a", "b.x -> not b.x", "drop continue", "drop break"]
    assert changes(in_a_function("if a == b:", "    return c")) == [
        "a == b -> a != b",
        "return c -> return None",
    ]
    assert changes(in_a_function("if not a:", "    return c"))[0] == "not a -> a"


def test_names_docstrings_decorators_and_annotations_are_left_alone() -> None:
    source = """
        '''A module.'''
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            import os
        @dataclass(frozen=True)
        class C(Base, total=False):
            '''A class.'''
            x: Literal[1] | None
            def f(self, a: Literal[2]) -> Literal[3]:
                '''A method.'''
                ...
    """
    assert changes(source) == []


def test_a_change_says_where_it_is_and_whether_it_runs_at_import() -> None:
    source = dedent(
        """
        LIMIT = 3
        class C:
            x: int = 4
            def f(self, a: int = 5) -> int:
                def inner() -> int:
                    return 6
        """
    )
    assert [
        (made.scope, made.before, made.lines, made.in_function) for made in mutations_of(source)
    ] == [
        ("", "3", (2, 2), False),
        ("C", "4", (4, 4), False),
        ("C", "5", (5, 5), False),
        ("C.f.inner", "return 6", (7, 7), True),
        ("C.f.inner", "6", (7, 7), True),
    ]


def test_no_line_behind_a_change_moves() -> None:
    source = in_a_function(
        "if (", "    a", "    < b  # \u00fc", "):", "    c.go(", "        a)", "end()"
    )
    made = {made.change: made.apply(source) for made in mutations_of(source)}
    for changed in made.values():
        assert changed.splitlines()[7] == "    end()" or "pass" in changed.splitlines()[7]
    assert ast.unparse(ast.parse(made["a < b -> a <= b"])) == ast.unparse(
        ast.parse(source.replace("<", "<="))
    )
    assert "c.go" not in made["drop c.go(a)"]


@pytest.mark.parametrize(
    "file", sweep(sorted((PACKAGE / "recovery").glob("*.py")), 6), ids=lambda f: f.stem
)
def test_every_change_to_the_package_is_a_module_again_and_another_one(file: Path) -> None:
    source = file.read_text()
    before = ast.dump(ast.parse(source))
    for made in mutations_of(source):
        changed = made.apply(source)
        assert ast.dump(ast.parse(changed)) != before
        assert changed.count("\n") == source.count("\n")


# -- with which tests ----------------------------------------------------------------------------


def test_tests_that_reach_the_most_in_the_least_time_come_first_and_then_such_again() -> None:
    reached = {"usual": [1, 2], "usual too": [1, 2], "slow": [1, 2, 3], "rare": [1, 7], "none": ()}
    seconds = {"usual": 0.1, "usual too": 0.2, "slow": 9.0, "rare": 0.4, "none": 0.1}
    assert spread_over(reached, seconds, 9) == ["usual", "rare", "slow", "usual too", "none"]
    assert spread_over(reached, seconds, 2) == ["usual", "rare"]
    assert spread_over({"none": ()}, {"none": 1.0}, 2) == ["none"], "the file runs at import alone"


def test_tests_that_reach_little_else_come_first_and_one_case_of_each_before_a_second_of_any() -> (
    None
):
    reached = {"own[1]": [1, 2], "own[2]": [1, 2], "wide": [1, 2, 3], "near": [1], "none": ()}
    whole = {"own[1]": 2, "own[2]": 2, "wide": 300, "near": 4, "none": 0}
    seconds = {"own[1]": 0.2, "own[2]": 0.1, "wide": 0.0, "near": 9.0, "none": 0.0}
    expected = ["own[2]", "near", "wide", "none", "own[1]"]
    assert nearest(reached, whole, seconds, 9) == expected
    assert nearest(reached, whole, seconds, 2) == expected[:2]


def test_a_constant_is_tried_with_what_reaches_the_lines_that_read_it() -> None:
    source = (
        "MOST = 3\nLEAST: int = 1\n\ndef f(a):\n    b = a + MOST\n    return b + LEAST + MOST\n"
    )
    assert uses(source, 1) == [5, 6]
    assert uses(source, 2) == [6]
    assert uses(source, 4) == [5, 6]
    assert uses(source, 5) == []


def test_a_default_is_read_by_the_body_of_its_function_and_that_of_a_class_by_its_name() -> None:
    source = """
        class A:
            most: int = 3

            def f(self, b=1):
                "It has words."
                return b

            def g(self):
                return self.most
    """
    assert uses(dedent(source), 3) == [10]
    assert uses(dedent(source), 5) == [6, 7]
    assert uses(dedent(source), 9) == [10]


@given(st.lists(st.floats(0, 10)), st.floats(0, 10))
def test_as_many_tests_as_fit_are_run_and_one_at_least(took: list[float], most_s: float) -> None:
    seconds = {f"t{number}": each for number, each in enumerate(took)}
    chosen = within(list(seconds), seconds.__getitem__, most_s)
    assert chosen == list(seconds)[: len(chosen)]
    assert len(chosen) >= min(1, len(took))
    assert len(chosen) <= 1 or sum(seconds[each] for each in chosen) <= most_s


def _mutant(room: str, number: int) -> Mutant:
    made = Mutation("", str(number), "", (1, 1), 1, 0, 0, "", in_function=True)
    return Mutant(f"tinker_recovery/{room}/x.py", made, (), 1.0)


def test_a_part_is_taken_evenly_of_each_room_and_the_same_for_a_seed() -> None:
    mutants = [_mutant(room, number) for room in ("run", "recovery") for number in range(20)]
    mutants += [_mutant("detection", number) for number in range(3)]
    order = evenly(mutants, 5)
    assert [each.room for each in order[:6]] == ["detection", "recovery", "run"] * 2
    assert order == evenly(mutants, 5)
    assert order != evenly(mutants, 6)
    assert sorted(map(str, order)) == sorted(map(str, mutants))


def test_quick_tests_that_reach_the_fewest_lines_come_first_one_case_of_each_before_a_second() -> (
    None
):
    whole = {"wide": 90, "unit[a]": 5, "unit[b]": 4, "other": 6, "slow": 1}
    seconds = dict.fromkeys(whole, UNIT_S) | {"slow": UNIT_S + 0.01}
    assert smallest(whole, seconds, 9) == ["unit[b]", "other", "wide", "unit[a]"]
    assert smallest(whole, seconds, 2) == ["unit[b]", "other"]
