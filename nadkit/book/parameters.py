"""Parameters: what a chapter declares in its parameters cell, and the values that agree with it.

A declaration is one line, `name: type = value  # help [rule]`:

    n_networks: int = 200  # networks to average over [1..100000]
    method: str = "secant"  # how the derivative is taken [secant, gradient, mixed]
    architecture: str = "lenet"  # the network [architecture]

Types are int, float, str, bool, list[int], list[float] and list[str], each also with `| None`. A list holds what is to
be run: at least one value, none of them twice. If there may be no value, it is None. Rules, for a value or for each
element of a list, are choices `[a, b, c]`, a range `[1..100]`, `[1..]`, `[..1]` or `[>0]`, and names that the library
knows: `[architecture]`, `[images]`, `[device]`.
"""

import ast
import contextlib
import importlib
import io
import json
import math
import os
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

from nadkit import files
from nadkit.names import did_you_mean, hint

Value = bool | int | float | str | list | None

_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"(?P<low>{_NUMBER})?\.\.(?P<high>{_NUMBER})?|>\s*(?P<above>{_NUMBER})")
_TYPE = re.compile(r"(?:list\[(?P<item>int|float|str)\]|(?P<scalar>int|float|str|bool))(?P<none> \| None)?")
_TYPES = "int, float, str, bool or list[int], list[float], list[str], each also with '| None'"


@dataclass(frozen=True)
class Choices:
    """The rule `[a, b, c]`."""

    options: tuple[Value, ...]

    def check(self, value: Value) -> None:
        """Raise ValueError unless `value` is one of the options."""
        if value not in self.options:
            names = [str(option) for option in self.options]
            raise ValueError(f"expected one of {', '.join(names)}, got {value!r}{hint(str(value), names)}")


@dataclass(frozen=True)
class Range:
    """The rule `[low..high]`, where either end may be missing, or `[>low]`."""

    text: str
    low: float
    high: float
    open: bool = False

    def check(self, value: float) -> None:
        """Raise ValueError unless `value` is in the range."""
        above = value > self.low if self.open else value >= self.low
        if not (above and value <= self.high):
            raise ValueError(f"expected a value in the range [{self.text}], got {value!r}")


@dataclass(frozen=True)
class Known:
    """The rule `[architecture]`, `[images]` or `[device]`: a name that the library knows."""

    kind: str

    def check(self, value: str) -> None:
        """Raise ValueError unless the library knows `value`."""
        # PyTorch takes seconds to import: only a check that needs it imports it.
        module, function = KNOWN[self.kind]
        with _importable(os.getcwd()):  # where the user's own architecture, MODULE:FUNCTION, may lie
            try:
                getattr(importlib.import_module(module), function)(value)
            except files.DataError as error:
                raise ValueError(str(error)) from None
            except SystemExit as error:  # the user's own module, while it was imported
                raise ValueError(
                    f"importing {value.partition(':')[0]!r} ended in sys.exit({error.code!r}); expected MODULE:FUNCTION"
                    " with a module that can be imported: put what a script does below if __name__ == '__main__'"
                ) from None

    def locate(self, value: str) -> str:
        """Return `value` so that it means the same in any folder: `folder:PATH` with an absolute path.

        A path that is not in the current folder is taken to lie in a data folder, and is not changed.
        """
        prefix, _, path = value.partition(":")
        if self.kind == "images" and prefix == "folder" and (folder := files.expanded(path)).is_dir():
            return f"folder:{folder.absolute()}"
        return value


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


KNOWN = {
    "architecture": ("nadkit.architectures", "check"),
    "images": ("nadkit.data.images", "check"),
    "device": ("nadkit.devices", "pick"),
}
Rule = Choices | Range | Known


@dataclass(frozen=True)
class Parameter:
    """One parameter of a chapter, as its notebook declares it."""

    name: str
    type: str
    default: Value
    help: str = ""
    rule: Rule | None = None

    def convert(self, value: Value) -> Value:
        """Return `value`, a string from the command line or a value from a file, as the declared type.

        Raises:
            ValueError: it is not of that type.
        """
        kind = _TYPE.fullmatch(self.type)
        if kind["none"] and (value is None or value in ("none", "None", "null")):
            return None
        try:
            if kind["scalar"]:
                return _CONVERT[kind["scalar"]](value)
            return [_CONVERT[kind["item"]](item) for item in _items(value)]
        except (TypeError, ValueError, KeyError, OverflowError):
            finite = " (finite)" if "float" in self.type else ""
            flag = "; write true or false" if "bool" in self.type else ""
            raise ValueError(f"expected {self.type}{finite}, got {value!r}{flag}") from None

    def check(self, value: Value, *, known: bool = True) -> None:
        """Raise ValueError where a value of the right type breaks a rule.

        Names that the library knows are checked only if `known`, because the answer depends on this machine.
        """
        if isinstance(value, list):
            _check_list(value, self.type)
        if self.rule is None or value is None or (isinstance(self.rule, Known) and not known):
            return
        for item in value if isinstance(value, list) else [value]:
            self.rule.check(item)

    def locate(self, value: Value) -> Value:
        """Return a valid `value` so that it means the same in any folder (see `Known.locate`)."""
        if not isinstance(self.rule, Known) or value is None:
            return value
        return [self.rule.locate(item) for item in value] if isinstance(value, list) else self.rule.locate(value)


def _check_list(values: list, type: str) -> None:
    if not values:
        raise ValueError(f"expected at least one value{', or none' if 'None' in type else ''}")
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{twice[0]!r} is there twice")


def _items(value: Value) -> list:
    if isinstance(value, str):
        text = value.strip()
        value = json.loads(text) if text.startswith("[") else text.split(",") if text else []
        value = [item.strip() if isinstance(item, str) else item for item in value]
    if not isinstance(value, list):
        raise TypeError
    return value


def _to_int(value: Value) -> int:
    if isinstance(value, (bool, float)):
        raise TypeError
    return int(value)


def _to_float(value: Value) -> float:
    if isinstance(value, bool) or not math.isfinite(number := float(value)):
        raise TypeError
    return number


def _to_str(value: Value) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _to_bool(value: Value) -> bool:
    return {"true": True, "false": False}[str(value).lower()]


_CONVERT = {"int": _to_int, "float": _to_float, "str": _to_str, "bool": _to_bool}


def parse_parameters(source: str) -> dict[str, Parameter]:
    """Return the parameters that the source of a parameters cell declares, in their order.

    Raises:
        ValueError: a line is not a declaration; the message names it and says what is wrong.
    """
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from None
    # Comments are not part of the syntax tree, and a '#' inside a string is not a comment.
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    parameters: dict[str, Parameter] = {}
    for node in body:
        try:
            parameter = _parse_parameter(node, comments.get(node.end_lineno, ""))
            if parameter.name in parameters:
                raise ValueError(f"{parameter.name} is declared twice")
        except ValueError as error:
            line = source.splitlines()[node.lineno - 1].strip()
            raise ValueError(f"line {node.lineno}, '{line}': {error}") from None
        parameters[parameter.name] = parameter
    return parameters


def _parse_parameter(node: ast.stmt, comment: str) -> Parameter:
    match node:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr()):
            pass
        case _:
            raise ValueError("expected 'name: type = value  # help [rule]'")
    declared = ast.unparse(annotation)
    if not (kind := _TYPE.fullmatch(declared)):
        raise ValueError(f"expected the type {_TYPES}, got {declared!r}")
    try:
        default = ast.literal_eval(node.value)
    except ValueError:
        value = ast.unparse(node.value)
        raise ValueError(f"expected a plain number, string, list, ..., got {value!r}") from None
    text, rule = re.fullmatch(r"#*\s*(.*?)\s*(?:\[([^\[\]]*)\])?\s*", comment).groups()
    _check_help(text)
    rule = None if rule is None else _parse_rule(rule.strip(), kind["item"] or kind["scalar"])
    parameter = Parameter(name, declared, default, text, rule)
    # A notebook may not write all that a command line may: in a notebook, "3" is not a number.
    if parameter.convert(default) != default:
        raise ValueError(f"expected {declared}, got {default!r}")
    parameter.check(default, known=False)
    return parameter


def _check_help(text: str) -> None:
    """Raise ValueError where a help text holds what was meant for a rule, which would be dropped in silence."""
    if text.count("[") != text.count("]") or text.endswith("]"):
        raise ValueError("the brackets of its comment do not match; expected 'help [rule]'")
    inside = re.findall(r"\[([^\[\]]*)\]", text)
    if rules := [part for part in inside if part.strip() in KNOWN or _RANGE.fullmatch(part.strip())]:
        raise ValueError(f"the rule [{rules[0]}] is not at the end of its comment; expected 'help [rule]'")


def _parse_rule(text: str, kind: str) -> Rule:
    number = kind in ("int", "float")
    if text in KNOWN and kind == "str":
        return Known(text)
    if (found := _RANGE.fullmatch(text)) and text != ".." and number:
        low, high = float(found["low"] or "-inf"), float(found["high"] or "inf")
        if found["above"]:
            return Range(text, float(found["above"]), high, open=True)
        if low <= high:
            return Range(text, low, high)
    words = [word.strip().strip("'\"") for word in text.split(",")]
    if len(words) > 1 and kind != "bool" and not found:
        with contextlib.suppress(ValueError, TypeError):
            return Choices(tuple(_CONVERT[kind](word) for word in words))
    help = f"; {did_you_mean(text, KNOWN)}" if kind == "str" and len(words) == 1 else ""
    allowed = {"str": "[a, b, c], [architecture], [images] or [device]", "bool": "none"}.get(
        kind, "[1, 2, 4], [1..100], [1..] or [>0]"
    )
    raise ValueError(f"expected a rule for {kind} ({allowed}), got [{text}]{help}")
