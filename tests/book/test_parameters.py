"""Parameters: the grammar of a declaration, and values that agree with it."""

import importlib
import sys
import types

import pytest

from nadkit.book.parameters import Choices, Known, Parameter, Range, parse_parameters


def parse(line: str) -> Parameter:
    (parameter,) = parse_parameters(line).values()
    return parameter


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("n: int = 3", Parameter("n", "int", 3)),
        ("n: int = -3  # how many", Parameter("n", "int", -3, "how many")),
        ("x: float = 1e-3", Parameter("x", "float", 1e-3)),
        ("x: float = 1", Parameter("x", "float", 1)),
        ("b: bool = True  # or not", Parameter("b", "bool", True, "or not")),
        ("s: str = 'a # b'  # a [note] here", Parameter("s", "str", "a # b", "a [note] here")),
        ("s: str = '#'  # [#, b]", Parameter("s", "str", "#", "", Choices(("#", "b")))),
        ("k: int = 2  # k [1, 2, 4]", Parameter("k", "int", 2, "k", Choices((1, 2, 4)))),
        ("x: float | None = None  # x", Parameter("x", "float | None", None, "x")),
        ("v: list[int] = [1,2]  # v", Parameter("v", "list[int]", [1, 2], "v")),
        (
            "v: list[str] = [\n    'a',\n    'b',\n]  # v",
            Parameter("v", "list[str]", ["a", "b"], "v"),
        ),
        ("s: str = 'lenet'  # [images]", Parameter("s", "str", "lenet", "", Known("images"))),
    ],
)
def test_a_declaration_is_read(line, expected):
    assert parse(line) == expected


@pytest.mark.parametrize(
    ("rule", "inside", "outside"),
    [
        ("1..100", [1, 50, 100], [0, 101]),
        ("1..", [1, 10**9], [0]),
        ("..1", [-5, 1], [2]),
        (">0", [1], [0, -1]),
        ("-3..-1", [-2], [0]),
    ],
)
def test_a_range_keeps_to_its_ends(rule, inside, outside):
    parameter = parse(f"n: int = {inside[0]}  # n [{rule}]")
    assert isinstance(parameter.rule, Range)
    for value in inside:
        parameter.check(value)
    for value in outside:
        with pytest.raises(ValueError, match=rf"in the range \[{rule}\], got {value}"):
            parameter.check(value)


def test_a_fractional_range_is_read():
    rule = parse("x: float = 0.5  # x [0.25..1.5]").rule
    assert (rule.low, rule.high) == (0.25, 1.5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("n = 3", r"line 1, 'n = 3': expected 'name: type = value"),
        ("n: int", "expected 'name: type = value"),
        ("n: int = 3\nimport os", "line 2, 'import os': expected"),
        ("n: integer = 3", "expected the type int, float.*, got 'integer'"),
        ("n: dict = {}", "expected the type"),
        ("n: list = []", "expected the type"),
        ("n: int = 1 + m", "expected a plain number"),
        ("n: int = '3'", "expected int, got '3'"),
        ("n: int = 3.0", "expected int, got 3.0"),
        ("n: int = True", "expected int, got True"),
        ("n: int = None", "expected int, got None"),
        ("b: bool = 1", "expected bool, got 1"),
        ("v: list[int] = (1, 2)", r"expected list\[int\]"),
        ("v: list[int] = [1, 'a']", r"expected list\[int\]"),
        ("x: float = 1e999", "finite"),
        ("n: int = 0  # n [1..10]", r"in the range \[1..10\], got 0"),
        ("v: list[int] = []", "expected at least one value"),
        ("v: list[str] = ['a', 'a']  # v [architecture]", "'a' is there twice"),
        ("n: int = 1  # n [10..1]", r"expected a rule for int .*, got \[10..1\]"),
        ("n: int = 1  # n [..]", "expected a rule"),
        ("n: int = 1  # n [a, b]", "expected a rule"),
        ("s: str = 'a'  # s [1..2]", "expected a rule for str"),
        ("s: str = 'a'  # s [b, c]", "expected one of b, c, got 'a'"),
        ("s: str = 'a'  # s [architectur]", "did you mean 'architecture'"),
        ("b: bool = True  # b [true, false]", "expected a rule for bool"),
        ("n: int = 3\nn: int = 4", "line 2.*n is declared twice"),
        ("n: int = [", "line 1: '\\[' was never closed"),
        ("%matplotlib inline", "line 1: invalid syntax"),
        ("n: int = 1  # n [1..10", "the brackets of its comment do not match"),
        ("n: int = 1  # n 1..10]", "the brackets of its comment do not match"),
        ("n: int = 1  # n [[1..10]]", "the brackets of its comment do not match"),
        ("n: int = 1  # [1..10], how many", r"the rule \[1..10\] is not at the end of its comment"),
        ("s: str = 'cpu'  # where [device].", r"the rule \[device\] is not at the end of its comment"),
    ],
)
def test_a_malformed_declaration_names_line_and_reason(source, message):
    with pytest.raises(ValueError, match=message):
        parse_parameters(source)


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        ("int", "3", 3),
        ("int", "-3", -3),
        ("float", "1e-3", 1e-3),
        ("float", 2, 2.0),
        ("str", "3", "3"),
        ("str", "", ""),
        ("bool", "true", True),
        ("bool", "False", False),
        ("bool", False, False),
        ("list[int]", "1,2, 3", [1, 2, 3]),
        ("list[int]", "7", [7]),
        ("list[int]", "", []),
        ("list[float]", "[1, 2.5]", [1.0, 2.5]),
        ("list[float]", ["1e-3", 1], [1e-3, 1.0]),
        ("list[str]", 'a,"b"', ["a", '"b"']),
        ("list[str]", '["a,b", "c"]', ["a,b", "c"]),
        ("int | None", "none", None),
        ("int | None", None, None),
        ("int | None", "3", 3),
        ("list[int] | None", "null", None),
    ],
)
def test_values_take_the_declared_type(kind, given, value):
    converted = Parameter("p", kind, None).convert(given)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("int", "2.0"),
        ("int", 2.0),
        ("int", True),
        ("int", None),
        ("int", "1e3"),
        ("float", "nan"),
        ("float", float("nan")),
        ("float", "-inf"),
        pytest.param("float", 10**400, id="too large for a float"),
        ("float", True),
        ("str", 3),
        ("bool", "yes"),
        ("bool", 1),
        ("list[int]", "1,,2"),
        ("list[int]", "[1, 2"),
        ("list[int]", 3),
        ("list[str]", [1]),
        ("int | None", "nothing"),
    ],
)
def test_other_values_are_refused(kind, given):
    with pytest.raises(ValueError, match=r"expected .*, got"):
        Parameter("p", kind, None).convert(given)


@pytest.mark.parametrize("given", ["yes", "no", "on", "off", "1", "0", 1, 0])
def test_a_flag_is_true_or_false(given):
    with pytest.raises(ValueError, match=rf"^expected bool, got {given!r}; write true or false$"):
        Parameter("p", "bool", True).convert(given)


def test_a_rule_holds_for_every_element_of_a_list():
    parameter = parse("v: list[int] = [1]  # v [>0]")
    with pytest.raises(ValueError, match="got -2"):
        parameter.check([1, -2])


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("list[str]", [], "expected at least one value$"),
        ("list[int] | None", [], "expected at least one value, or none"),
        ("list[str]", ["lenet", "vgg11", "lenet"], "'lenet' is there twice"),
        ("list[float]", [0.5, 0.5], "0.5 is there twice"),
    ],
)
@pytest.mark.parametrize("rule", [None, Known("architecture")])
def test_a_list_is_of_distinct_things_to_run(kind, value, message, rule):
    with pytest.raises(ValueError, match=message):
        Parameter("p", kind, None, "", rule).check(value, known=False)


def test_a_list_may_be_none_where_it_says_so():
    Parameter("p", "list[int] | None", None).check(None)


def test_a_near_miss_among_choices_is_suggested():
    with pytest.raises(ValueError, match="did you mean 'secant'"):
        parse("m: str = 'secant'  # m [secant, gradient]").check("secnt")


def test_the_library_is_asked_only_when_a_name_is_checked(monkeypatch):
    def check(name: str) -> None:
        raise ValueError(f"the library has no {name}")

    monkeypatch.setitem(sys.modules, "nadkit.data.images", types.SimpleNamespace(check=check))
    parameter = parse("data: str = 'digits'  # data [images]")
    with pytest.raises(ValueError, match="the library has no digits"):
        parameter.check("digits")


def test_the_current_folder_is_importable_while_a_name_is_checked(monkeypatch, tmp_path):
    (tmp_path / "my_own_networks.py").write_text("def tiny(): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "nadkit.architectures", types.SimpleNamespace(check=importlib.import_module))
    monkeypatch.delitem(sys.modules, "my_own_networks", raising=False)
    before = list(sys.path)
    Known("architecture").check("my_own_networks")
    assert sys.modules.pop("my_own_networks").__file__ == str(tmp_path / "my_own_networks.py")
    assert sys.path == before


def test_a_relative_folder_of_images_becomes_absolute(monkeypatch, tmp_path):
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path)
    one, several = parse("s: str = 'digits'  # [images]"), parse("s: list[str] = ['digits']  # [images]")
    assert one.locate("folder:pets") == f"folder:{tmp_path / 'pets'}"
    assert several.locate(["digits", "folder:pets"]) == ["digits", f"folder:{tmp_path / 'pets'}"]
    assert one.locate("folder:in-a-data-folder") == "folder:in-a-data-folder"
    assert parse("s: str = 'a'").locate("folder:pets") == "folder:pets"
    assert parse("s: str | None = None  # [images]").locate(None) is None


def test_names_of_devices_are_checked():
    parameter = parse("device: str = 'auto'  # where [device]")
    parameter.check("cpu")
    parameter.check("auto")
    with pytest.raises(ValueError, match="gpu"):
        parameter.check("gpu")
