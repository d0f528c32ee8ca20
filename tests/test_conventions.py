"""The habits of the project, kept by the machine: a public surface that is frozen, keyword-only
options, documentation, floors, and imports that cost nothing."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

import rmacjax
from rmacjax.cli import function_of

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rmacjax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MODULES = sorted(
    ".".join(source.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for source in SOURCES
    if source.stem != "__main__"
)
FROZEN = ROOT / "tests" / "public_names.txt"

# Options of public names that are documented by position; all others are keyword-only.
BY_POSITION = {
    "gem": ["p"],
    "rmac": ["levels", "whitening", "with_global"],
    "rgem": ["p"],
    "rmac_regions": ["levels"],
    "region_generalized_means": ["alpha"],
    "integral_image": ["alpha"],
    "fit_pca_whitening": ["dimensions", "shrinkage"],
    "aml": ["ratio"],
    "localize": ["ratio", "max_ratio"],
    "aml_instances": ["ratio"],
    "localize_instances": ["ratio", "max_ratio"],
    "Collection.open": ["params"],
    "Collection.search": ["box_px", "top", "rerank", "expand"],
}


def members(value: type) -> dict[str, object]:
    """Return the public methods and properties that a class defines itself."""
    found = {name: getattr(value, name) for name in vars(value) if not name.startswith("_")}
    fields = getattr(value, "_fields", ())
    return {
        name: member
        for name, member in found.items()
        if name not in fields and (inspect.isroutine(member) or isinstance(member, property))
    }


def surface(name: str, value: object) -> list[str]:
    """Return one line per promise that a public name makes: parameters, their order, defaults."""
    if not callable(value):
        return [name]
    parameters = inspect.signature(value).parameters.values()
    bare = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
    lines = [f"{name}{inspect.Signature(bare)}"]
    if inspect.isclass(value):
        for member_name, member in members(value).items():
            lines += surface(f"{name}.{member_name}", member)
    return lines


def public_functions(module_name: str) -> list[tuple[str, object]]:
    """Return functions and methods that a module defines under a name without underscore."""
    module = importlib.import_module(module_name)
    found = []
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module_name:
            continue
        if inspect.isclass(value):
            for member, method in vars(value).items():
                method = inspect.unwrap(getattr(method, "__func__", method))
                if not member.startswith("_") and inspect.isfunction(method):
                    found.append((f"{module_name}.{name}.{member}", method))
        elif callable(value):
            found.append((f"{module_name}.{name}", value))
    return found


def test_the_public_names_are_those_that_were_promised():
    public = [name for name in rmacjax.__all__ if not name.startswith("_")]
    now = [line for name in public for line in surface(name, getattr(rmacjax, name))]
    frozen = FROZEN.read_text().splitlines()
    assert now == frozen, "the public surface changed; if meant, write to public_names.txt:\n" + (
        "\n".join(now)
    )


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'rmacjax' has no attribute 'rmack'"):
        _ = rmacjax.rmack
    assert set(rmacjax.__all__) <= set(dir(rmacjax))


@pytest.mark.parametrize("name", [name for name in rmacjax.__all__ if not name.startswith("_")])
def test_every_public_name_is_documented(name):
    value = getattr(rmacjax, name)
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert text and not text.startswith(f"{name}("), f"{name} has no docstring of its own"
    first, _, rest = text.strip().partition("\n")
    assert first.endswith((".", "?", ":")), f"{name}: the first line is not a sentence: {first}"
    if not inspect.isclass(value):
        for section in ("Args:", "Returns:"):
            assert section in rest, f"{name}: its docstring lacks {section}"
        for parameter in inspect.signature(value).parameters:
            assert f"{parameter}:" in rest, f"{name}: Args does not explain {parameter}"


def options_by_position(function: object) -> list[str]:
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    ]


def test_options_of_public_names_are_keyword_only():
    found = {}
    for name in rmacjax.__all__:
        value = getattr(rmacjax, name)
        if inspect.isclass(value):
            for member_name, member in members(value).items():
                if callable(member):
                    found[f"{name}.{member_name}"] = member
        elif callable(value):
            found[name] = value
    by_position = {name: options_by_position(function) for name, function in found.items()}
    assert {name: options for name, options in by_position.items() if options} == BY_POSITION


@pytest.mark.parametrize("module", MODULES)
def test_no_function_takes_what_it_does_not_name(module):
    for name, function in public_functions(module):
        kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds, f"{name} takes **kwargs"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(PACKAGE)))
def test_source_keeps_the_habits(source):
    text = source.read_text()
    for word in ("TODO", "FIXME", "XXX", "NotImplementedError"):
        assert word not in text, f"{source.name} holds a promise: {word}"
    tree = ast.parse(text)
    if text:
        assert ast.get_docstring(tree), f"{source.name} has no module docstring"
    for node in ast.walk(tree):
        where = f"{source.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom):
            assert node.module != "__future__", f"{where}: __future__ turns shape checks off"
            assert not node.level, f"{where}: imports are absolute"
        assert not isinstance(node, ast.Assert), f"{where}: assert vanishes under python -O"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{where}: bare except"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print" or source.parent.name == "cli", f"{where}: print"


def run_python(code: str, folder: Path | None = None) -> str:
    """Run code in a fresh interpreter; return what it wrote."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_modules_import_only_from_lower_floors():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports({}))"
    run_python(code.format(f"{str(ROOT / 'pyproject.toml')!r}, no_cache=True"), ROOT)


def test_importing_the_package_or_its_commands_loads_nothing_heavy():
    heavy = ["jax", "flax", "lance", "pyarrow", "PIL", "scipy", "tensorflow_datasets", "torch"]
    loaded = run_python(
        f"import sys, rmacjax, rmacjax.cli;print([name for name in {heavy} if name in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_geometry_evaluation_and_ground_truth_run_without_jax():
    run_python(
        "import sys; sys.modules['jax'] = None; sys.modules['jaxlib'] = None;"
        "import numpy, rmacjax.datasets, rmacjax.storage;"
        "assert rmacjax.rmac_regions(12, 16).shape == (20, 4);"
        "assert rmacjax.mean_average_precision("
        "numpy.array([[0], [1]]), [numpy.array([0])], [numpy.array([], int)]).map == 1"
    )


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"] == {"path": "rmacjax/__init__.py"}
    assert f"## [{rmacjax.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def shown_default(annotation: object) -> str | None:
    """Return what the help says is the default of an option that is None unless given."""
    hints = [getattr(note, "help_behavior_hint", None) for note in get_args(annotation)[1:]]
    found = [re.fullmatch(r"\(default: (.+)\)", hint) for hint in hints if isinstance(hint, str)]
    return found[0].group(1) if found and found[0] else None


def test_defaults_of_commands_are_those_of_the_functions():
    behind = {
        "index": [rmacjax.Settings],
        "search": [rmacjax.Collection.search],
        "evaluate": [rmacjax.Collection.search, rmacjax.Settings],
        "whiten": [rmacjax.fit_pca_whitening, rmacjax.Settings],
        "demo": [rmacjax.Collection.search, rmacjax.Settings],
    }
    compared = []
    for command, functions in behind.items():
        theirs = inspect.signature(function_of(command)).parameters
        for function in functions:
            for name, parameter in inspect.signature(function).parameters.items():
                if parameter.default is parameter.empty or name not in theirs:
                    continue
                default, hint = theirs[name].default, shown_default(theirs[name].annotation)
                if default is None and hint is not None:
                    assert hint == str(parameter.default), f"help of {command} --{name}"
                else:
                    assert default == parameter.default, f"{command} --{name}"
                compared.append(f"{command} {name}")
    expected = ["index long_side", "search top", "search rerank", "search expand"]
    assert set(expected) <= set(compared), compared
