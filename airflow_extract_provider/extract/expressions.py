"""JMESPath expressions over JSON values with all their digits, and which fields an expression reads.

JMESPath: https://jmespath.org/specification.html. Other than in its library, numbers are exact (int and Decimal, in
literals too), 1 is never true, numbers and texts do not compare, and a literal in backticks is JSON and nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import reduce
from typing import Any, TypeAlias

from jmespath import functions
from jmespath.exceptions import JMESPathError, LexerError, ParseError
from jmespath.lexer import Lexer
from jmespath.parser import Parser
from jmespath.visitor import Options, TreeInterpreter

from airflow_extract_provider.extract.exact import EXACT, is_number, read, same, written
from airflow_extract_provider.extract.page import FieldPath

__all__ = ["Expression"]

_Node: TypeAlias = Mapping[str, Any]
_At: TypeAlias = frozenset[FieldPath]
_NOWHERE: _At = frozenset()
_ROOT: _At = frozenset({()})
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_PYTHON_TYPES = {kind: [*names] for kind, names in functions.REVERSE_TYPES_MAP.items()}
_PYTHON_TYPES["number"].append("Decimal")
_NO_JSON = "in backticks stands JSON; a text is written 'so'"
_LONGER = 28
"""By how many digits an average is more exact than the sum it comes from."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A JMESPath expression that can be evaluated."""

    text: str
    tree: _Node

    @classmethod
    def compiled(cls, text: str) -> Expression:
        """The expression that a text writes.

        Raises ValueError: it is none, or calls a function in a way that there is not; says where, in words.
        """
        try:
            tree = _parsed(text)
        except JMESPathError as exc:
            raise ValueError(f"{text!r} is no JMESPath expression: {_reason(text, exc)}") from None
        except RecursionError:
            raise ValueError("the JMESPath expression is nested too deeply") from None
        for node in _nodes(tree):
            if node["type"] == "function_expression":
                _check_call(node["value"], len(node["children"]))
        return cls(text, tree)

    def value(self, of: Any) -> Any:
        """What the expression finds in a value that `exact.read` has read.

        Raises ValueError: a function was given what it does not take.
        """
        return _INTERPRETER.visit(self.tree, of)

    @property
    def field_of_boolean(self) -> bool:
        """Whether it asks for a field of `!...`, which is always null: the grammar binds `!` more tightly than `.`."""
        nodes = (node for node in _nodes(self.tree) if node["type"] == "subexpression")
        return any(node["children"][0]["type"] == "not_expression" for node in nodes)

    def reads(self, roots: _At = _ROOT) -> _At:
        """The fields that decide its value: it is the same for a value that holds no others.

        ``roots`` are the places that stay what they are, object or null, when fields are left out below them. Where it
        cannot be told which fields matter, the path is that of all of them together; ``()`` is everything.
        """
        reads = _Reads(roots)
        reads.whole(self.tree, _ROOT)
        return frozenset(reads.found)


class _Lexer(Lexer):
    """The library's lexer, with literals that keep their digits."""

    def _consume_literal(self: Any) -> dict[str, Any]:
        start = self._position
        text = self._consume_until("`").replace("\\`", "`")
        try:
            value = read(text)
        except ValueError:
            raise LexerError(start, text, _NO_JSON) from None
        return {"type": "literal", "value": value, "start": start, "end": self._position - start}


def _parsed(text: str) -> _Node:
    """The library's `Parser._parse`, with our lexer."""
    parser: Any = Parser()
    parser._tokens = list(_Lexer().tokenize(text))
    tree: _Node = parser._expression()
    if parser._current_token() != "eof":
        token = parser._lookahead_token(0)
        raise ParseError(token["start"], token["value"], token["type"])
    return tree


def _reason(text: str, exc: JMESPathError) -> str:
    if not isinstance(exc, ParseError):
        return "it is empty"
    if isinstance(exc, LexerError):
        hint = f" ({_NO_JSON})" if exc.message == _NO_JSON else ""
        return f"what begins at its character {exc.lex_position + 1} is not understood{hint}"
    if exc.lex_position >= len(text):
        return "it ends too early"
    hint = " (a number is written in backticks)" if exc.token_type == "NUMBER" else ""  # noqa: S105
    return f"{str(exc.token_value)!r} at its character {exc.lex_position + 1} is not expected there{hint}"


def _nodes(node: _Node) -> Iterator[_Node]:
    yield node
    for child in node.get("children", ()):
        if isinstance(child, Mapping):
            yield from _nodes(child)


def _check_call(name: str, given: int) -> None:
    known = _Functions.FUNCTION_TABLE
    if name not in known:
        raise ValueError(f"JMESPath has no function {name}(); it has {', '.join(sorted(known))}")
    signature = known[name]["signature"]
    variadic = bool(signature) and bool(signature[-1].get("variadic"))
    if given < len(signature) or (given > len(signature) and not variadic):
        raise ValueError(f"the function {name}() takes {len(signature)} values, not {given}")


class _Functions(functions.Functions):
    """JMESPath's functions, without a float in between."""

    def _get_allowed_pytypes(self, types: list[str]) -> tuple[list[str], list[list[str]]]:
        """The names of the Python types that an argument may have, and of those in it, one list for each choice."""
        kinds = [each.partition("-") for each in types]
        allowed = [name for kind, _, _ in kinds for name in _PYTHON_TYPES[kind]]
        return allowed, [_PYTHON_TYPES[below] for _, _, below in kinds if below]

    def _convert_to_jmespath_type(self, pyobject: str) -> str:
        return next((kind for kind, names in _PYTHON_TYPES.items() if pyobject in names), "unknown")

    @functions.signature({"types": ["number"]})
    def _func_abs(self, arg: Any) -> Any:
        return abs(arg) if isinstance(arg, int) else arg.copy_abs()

    @functions.signature({"types": ["number"]})
    def _func_ceil(self, arg: Any) -> Any:
        return math.ceil(arg)

    @functions.signature({"types": ["array-number"]})
    def _func_sum(self, arg: Any) -> Any:
        return _total(arg)

    @functions.signature({"types": ["array-number"]})
    def _func_avg(self, arg: Any) -> Any:
        if not arg:
            return None
        total = Decimal(_total(arg))
        digits = Context(prec=len(total.as_tuple().digits) + len(str(len(arg))) + _LONGER)
        return digits.divide(total, Decimal(len(arg)))

    @functions.signature({"types": []})
    def _func_to_number(self, arg: Any) -> Any:
        if isinstance(arg, str) and _NUMBER.fullmatch(arg):
            return read(arg)
        return arg if is_number(arg) else None

    @functions.signature({"types": []})
    def _func_to_string(self, arg: Any) -> Any:
        return arg if isinstance(arg, str) else written(arg).decode()

    @functions.signature({"types": []})
    def _func_type(self, arg: Any) -> Any:
        return self._convert_to_jmespath_type(type(arg).__name__)

    @functions.signature({"types": ["array", "string"]}, {"types": []})
    def _func_contains(self, subject: Any, search: Any) -> Any:
        if isinstance(subject, str):
            return isinstance(search, str) and search in subject
        return any(same(each, search) for each in subject)


def _total(numbers: list[int | Decimal]) -> int | Decimal:
    if all(isinstance(each, int) for each in numbers):
        return sum(numbers)
    return reduce(EXACT.add, numbers, Decimal(0))


class _Interpreter(TreeInterpreter):
    """JMESPath's meaning, with JSON's equality."""

    def visit_comparator(self, node: Any, value: Any) -> Any:
        left, right = (self.visit(child, value) for child in node["children"])
        if node["value"] in ("eq", "ne"):
            return same(left, right) == (node["value"] == "eq")
        alike = (is_number(left) and is_number(right)) or (isinstance(left, str) and isinstance(right, str))
        return self.COMPARATOR_FUNC[node["value"]](left, right) if alike else None


_INTERPRETER: Any = _Interpreter(Options(custom_functions=_Functions()))


class _Reads:
    """A walk through an expression that follows where in the value each part of it stands."""

    def __init__(self, roots: _At) -> None:
        self.roots = roots
        self.found: set[FieldPath] = set()

    def whole(self, node: _Node, at: _At) -> None:
        """All that the part finds matters."""
        self.found |= self._at(node, at)

    def _at(self, node: _Node, at: _At) -> _At:
        """The places of what the part finds, ``at`` being those it starts from; what it looks at is noted.

        What is no place any more (a number that was computed, an element of a list) is left out: what it was made of
        has been noted.
        """
        kind, children = node["type"], node.get("children", [])
        if kind == "field":
            return frozenset((*path, node["value"]) for path in at)
        if kind in ("current", "identity"):
            return at
        if kind in ("subexpression", "pipe"):
            return reduce(lambda found, child: self._at(child, found), children, at)
        if kind in ("or_expression", "and_expression"):
            # Which side it is depends on all of the first one: {} counts as false.
            self.whole(children[0], at)
            return self._at(children[1], at)
        self._look(kind, children, at)
        return _NOWHERE

    def _look(self, kind: str, children: list[_Node], at: _At) -> None:
        if kind in ("projection", "value_projection", "filter_projection", "flatten", "index_expression"):
            # The parts after the first see elements of what is read whole here.
            children = children[:1]
        if kind in ("multi_select_list", "multi_select_dict"):
            self.found |= at - self.roots  # it is null where that is null
        if kind == "comparator" and any(_is_null(child) for child in children):
            at_root = [self._at(child, at) - self.roots for child in children]
            self.found |= frozenset().union(*at_root)
        elif kind not in ("literal", "expref"):
            for child in children:
                self.whole(child, at)


def _is_null(node: _Node) -> bool:
    return node["type"] == "literal" and node["value"] is None
