"""Forecast: which claims a run can decide, known before it runs.

A chapter's own code runs with the run's parameters, but nothing is computed: what a library would return is `Unknown`,
and so is whatever follows from it. Everything that depends on the parameters alone (settings, amounts, which networks
there are) comes out as in the run. So a claim's `needs` and `same` are known wherever they do not depend on a result.
"""

import __future__

import ast
import builtins
import functools
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import repeat
from types import CodeType, ModuleType
from typing import Any

from nadkit.book import claims
from nadkit.book.chapters import Chapter, cell_source, cell_tags
from nadkit.book.claims import Claim
from nadkit.book.parameters import Known
from nadkit.book.sources import tree

ENDLESS = 10_000
"""How often one statement may ask whether something unknown is true; a loop that waits for it would never end."""
NO_TYPES = __future__.annotations.compiler_flag
PURE = {"collections", "copy", "dataclasses", "functools", "itertools", "json", "math", "operator", "re", "typing"}
"""Python's modules that only compute: they are used in a forecast, too. Others might wait, write or delete."""
PLAIN = (str, int, float, bool, tuple, list, dict, frozenset, type(None))


class Endless(RuntimeError):
    """A statement waits for something that only the run can tell."""


class Unknown:
    """A value that only the run can tell; `of` are the names it was picked by. What is computed from it is unknown.

    As a condition it is true, because a run is expected to measure what it can. Only a test for equality is false.
    """

    asked = 0
    true = True

    def __init__(self, of: frozenset[str] = frozenset()) -> None:
        self.of = of

    def _with(self, *others: object) -> "Unknown":
        """Return something unknown that is about the networks of all these."""
        return Unknown(self.of.union(*(other.of for other in others if isinstance(other, Unknown))))

    def __getattr__(self, name: str) -> "Unknown | Callable":
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__getitem__ if name == "get" else self._with()

    def __call__(self, *values: object, **named: object) -> "Unknown":
        return self._with(*values, *named.values())

    def __getitem__(self, key: object, default: object = None) -> "Unknown":
        keys = key if isinstance(key, tuple) else (key,)
        return self._with(Unknown(frozenset(key for key in keys if isinstance(key, str))), *keys)

    def __eq__(self, other: object) -> "Unknown":
        found = self[other]
        found.true = False  # two numbers are seldom equal
        return found

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __bool__(self) -> bool:
        Unknown.asked += 1
        if Unknown.asked > ENDLESS:
            raise Endless
        return self.true

    def __enter__(self) -> "Unknown":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __format__(self, spec: str) -> str:
        return "?"

    __hash__ = object.__hash__
    __iter__ = None  # otherwise Python would ask for item after item


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
    for _form in (f"__{_name}__", f"__r{_name}__"):
        setattr(Unknown, _form, Unknown._with)
for _name in ("lt", "le", "gt", "ge", "ne", "neg", "pos", "abs", "invert", "round"):
    setattr(Unknown, f"__{_name}__", Unknown._with)


class _Known:
    """A function or type that does its work; where it fails for something unknown, its result is unknown."""

    def __init__(self, function: Callable, fails: type[Exception] = TypeError) -> None:
        self._function, self._fails = function, fails

    def __call__(self, *values: object, **named: object) -> object:
        try:
            return self._function(*values, **named)
        except self._fails:
            unknown = list(_unknown([*values, *named.values()]))
            if self._fails is TypeError and not unknown:
                raise
            return Unknown()(*unknown)

    def __getattr__(self, name: str) -> object:
        return getattr(self._function, name)

    def __getitem__(self, key: object) -> object:
        return self._function[key]


def _unknown(values: object) -> Iterator[Unknown]:
    """Give what is unknown in lists in lists."""
    for value in values:
        if isinstance(value, Unknown):
            yield value
        elif isinstance(value, list | tuple):
            yield from _unknown(value)


class _Module:
    """A module of ours of which only plain data are known, or one of Python's."""

    def __init__(self, module: ModuleType, plain: bool) -> None:
        self._module, self._plain = module, plain

    def __getattr__(self, name: str) -> object:
        return _part(self._module, name, self._plain)


def _part(module: ModuleType, name: str, plain: bool) -> object:
    found = getattr(module, name)
    if isinstance(found, ModuleType):
        return _Module(found, plain)
    if plain:
        return found if isinstance(found, PLAIN) else Unknown()
    return _Known(found) if callable(found) and not isinstance(found, type) else found


# ---- what is expected ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """A claim that a run will make: its fields are those of a `Claim`, as far as they are known before the run."""

    id: str
    statement: str
    measured: object
    holds_if: str
    source: str = claims.OURS
    reported: object = None
    error: object = 0.0
    needs: Mapping[str, tuple] = field(default_factory=dict)
    same: Mapping[str, tuple] = field(default_factory=dict)
    paper: str = ""
    absent: frozenset[str] = frozenset()

    @property
    def obstacles(self) -> list[str]:
        """What the run lacks to decide the claim, as far as its parameters tell."""
        if isinstance(self.measured, Unknown):
            missing = [f"without {name}" for name in sorted(self.measured.of & self.absent)]
        else:
            missing = ["not measured"] if self.measured is None or math.isnan(self.measured) else []
        return missing + self._without_result().obstacles

    @property
    def stand_in(self) -> str:
        """The stand-in that it will be measured on, in place of the images that it is about."""
        return self._without_result().stand_in

    def _without_result(self) -> Claim:
        """Return a claim with the conditions of this one that parameters decide."""
        known = {
            name: {key: pair for key, pair in getattr(self, name).items() if not list(_unknown([pair]))}
            for name in ("needs", "same")
        }
        return Claim(self.id, self.statement, None, self.holds_if, paper=self.paper, **known)

    def judge(self, claim: Claim) -> Claim:
        """Return a recorded run's claim, judged by today's rules (`Claim.judged_by`), in today's words if known."""
        rules = {
            name: {key: (claims.UNKNOWN, pair[1]) for key, pair in getattr(self, name).items() if _required(pair)}
            for name in ("needs", "same")
        }
        judged = claim.judged_by(Claim(self.id, self.statement, None, self.holds_if, paper=self.paper, **rules))
        # a text has a "?" for what is unknown
        return judged if "?" in self.statement else replace(judged, statement=self.statement)


def _required(pair: object) -> bool:
    """Return whether what a condition requires is known."""
    return isinstance(pair, tuple) and not isinstance(pair[1], Unknown)


def expected(chapter: Chapter, values: Mapping[str, Any]) -> list[Expected]:
    """Return the claims that a run of a chapter with these values will make.

    A claim is left out if not even its name is known before the run.
    """
    from nadkit.architectures import NAMES

    found: list[Expected] = []
    making = {"Claim": Expected, "about": functools.partial(claims.about, kind=Expected), "show": found.extend}
    space = {
        "__builtins__": _builtins(),
        "__name__": "__main__",
        "_items": _items,
        "_entries": _entries,
        "_options": _options,
        **values,
    }
    cells = (cell for cell in chapter.notebook["cells"] if cell["cell_type"] == "code")
    sources = (cell_source(cell) for cell in cells if "parameters" not in cell_tags(cell))
    for statement, code in (pair for source in sources for pair in _compiled(source)):
        Unknown.asked = 0
        try:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                space |= _imported(statement, making)
            else:
                exec(code, space)  # without code it fails, and what it would assign is unknown
        except Exception:  # it needs a result
            words = (node.value for node in ast.walk(statement) if isinstance(node, ast.Constant))
            space |= dict.fromkeys(_assigned(statement), Unknown(frozenset(w for w in words if isinstance(w, str))))
        if isinstance(statement, ast.FunctionDef):
            space[statement.name] = _Known(space[statement.name], Exception)
    lists = [values[name] or [] for name, p in chapter.parameters.items() if p.rule == Known("architecture")]
    networks = {name for names in lists for name in ([names] if isinstance(names, str) else names)}
    absent = frozenset(NAMES) - networks
    return [replace(claim, absent=absent) for claim in found if isinstance(claim, Expected)]


def judged(chapter: Chapter, parameters: Mapping[str, Any], measured: Sequence[Claim]) -> dict[str, Claim]:
    """Return by name the claims that a run with these parameters made, judged by today's rules.

    The rules are those for a run with these parameters, not for any other run. For example, NADs that come from a file
    need no second run that finds them. A claim that today's chapter would not make is left out.
    """
    today = {name: parameters.get(name, parameter.default) for name, parameter in chapter.parameters.items()}
    rules = {rule.id: rule for rule in expected(chapter, today)}
    return {claim.id: rules[claim.id].judge(claim) for claim in measured if claim.id in rules}


class _Careful(ast.NodeTransformer):
    """Code that can unpack what is unknown, too: `a, b = unknown`, which says how many there are, `*` and `**`."""

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        self.generic_visit(node)
        match node.targets:
            case [ast.Tuple(items)] if not any(isinstance(item, ast.Starred) for item in items):
                node.value = _call("_items", node.value, ast.Constant(len(items)))
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                argument.value = _call("_items", argument.value, ast.Constant(1))
        for option in node.keywords:
            if option.arg is None:
                option.value = _call("_options", option.value)
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.Dict:
        self.generic_visit(node)
        pairs = zip(node.keys, node.values, strict=True)
        node.values = [_call("_entries", value) if key is None else value for key, value in pairs]
        return node


def _call(function: str, *values: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(function, ast.Load()), list(values), [])


def _items(value: object, n: int) -> object:
    return [value] * n if isinstance(value, Unknown) else value


def _entries(value: object) -> object:
    return {"?": value} if isinstance(value, Unknown) else value


def _options(value: object) -> object:
    return {} if isinstance(value, Unknown) else value


def _builtins() -> dict[str, object]:
    keep = {name: value for name, value in vars(builtins).items() if name not in ("open", "exec", "eval", "input")}
    plain = {name: _Known(value) for name, value in keep.items() if callable(value) and name.islower()}
    return keep | plain | {"print": _nothing, "zip": _Known(_zip), "__build_class__": builtins.__build_class__}


def _nothing(*_: object, **__: object) -> None:
    """Print nothing."""


def _zip(*values: object, strict: bool = False) -> Iterator[tuple]:
    """Return tuples, as many as there are of what is known."""
    known = [value for value in values if not isinstance(value, Unknown)]
    if len(known) == len(values):
        return zip(*values, strict=strict)
    endless = (repeat(value) if isinstance(value, Unknown) else value for value in values)
    return zip(*endless, strict=False) if known else iter(values[0])


@functools.lru_cache(maxsize=2048)
def _compiled(source: str) -> tuple[tuple[ast.stmt, CodeType | None], ...]:
    """Return the statements of a cell and their code, kept, for a build forecasts a chapter for each of its runs."""
    careful = [ast.fix_missing_locations(_Careful().visit(statement)) for statement in _statements(source)]
    return tuple((statement, _code(statement)) for statement in careful)


def _code(statement: ast.stmt) -> CodeType | None:
    """Return the code of a statement; of one with `await`, which only a notebook may have, nothing."""
    with suppress(SyntaxError):
        return compile(ast.Module([statement], type_ignores=[]), "<cell>", "exec", flags=NO_TYPES)
    return None


def _statements(source: str) -> Iterator[ast.stmt]:
    """Give the statements of a cell in order; where a list of claims is shown, each claim on its own."""
    for statement in tree(source).body:
        match statement:
            case ast.Expr(ast.Call(ast.Name("show") as show, [ast.List(items)])):
                for item in items:
                    alone = ast.Expr(ast.Call(show, [ast.List([item], ast.Load())], []))
                    yield ast.copy_location(alone, statement)
            case _:
                yield statement


def _imported(statement: ast.Import | ast.ImportFrom, making: Mapping[str, object]) -> dict[str, object]:
    """Return what an import brings: Python's modules that only compute, plain data of ours, nothing of the others."""
    found = {}
    for alias in statement.names:
        name = alias.asname or alias.name.partition(".")[0]
        source = statement.module if isinstance(statement, ast.ImportFrom) else alias.name
        top = source.partition(".")[0]
        if source == "nadkit.book.claims":
            found[name] = making[alias.name]
        elif source == "tqdm":
            found[name] = lambda items, **_: items
        elif (top not in PURE and top != "nadkit") or (source, alias.name) == ("nadkit", "plots"):
            found[name] = Unknown()  # no claim rests on a figure, and seaborn is slow to import
        elif isinstance(statement, ast.Import):
            found[name] = _Module(importlib.import_module(source if alias.asname else top), top == "nadkit")
        else:
            with suppress(ImportError):  # a module that nothing imported so far
                importlib.import_module(f"{source}.{alias.name}")
            found[name] = _part(importlib.import_module(source), alias.name, top == "nadkit")
    return found


def _assigned(node: ast.AST) -> Iterator[str]:
    """Give the names that a statement gives values to, or adds values to."""
    match node:
        case ast.FunctionDef(name) | ast.ClassDef(name):
            yield name
            return
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp() | ast.Lambda():
            return  # their names are local
        case ast.Name(name, ast.Store()) | ast.Subscript(ast.Name(name), ctx=ast.Store()):
            yield name
        case ast.Call(ast.Attribute(ast.Name(name), "append" | "extend" | "update" | "add")):
            yield name
        case ast.alias(name, asname):
            yield asname or name
    for child in ast.iter_child_nodes(node):
        yield from _assigned(child)
