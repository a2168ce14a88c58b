"""Public functions are annotated in full, so that mypy and beartype look at them."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "posefix_jax"


def unannotated(body: list[ast.stmt], *, method: bool = False) -> list[str]:
    """Names of public functions, methods included, that lack the annotation of an argument or of the result."""
    found = []
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found += [f"{node.name}.{name}" for name in unannotated(node.body, method=True)]
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            static = any(
                isinstance(decorator, ast.Name) and decorator.id == "staticmethod" for decorator in node.decorator_list
            )
            given = node.args
            arguments = [*given.posonlyargs, *given.args][method and not static :] + given.kwonlyargs
            arguments += [argument for argument in (given.vararg, given.kwarg) if argument]
            if node.returns is None or any(argument.annotation is None for argument in arguments):
                found.append(node.name)
    return found


def test_public_functions_are_annotated():
    gaps = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = unannotated(ast.parse(path.read_text()).body)
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if names:
            gaps[module] = names
    assert not gaps, f"annotate these: {gaps}"


def test_gaps_are_seen():
    code = (
        "class A:\n  def f(self, x): ...\n  def g(self, x: int) -> int: ...\ndef h(*, y) -> int: ...\ndef _i(x): ...\n"
    )
    assert unannotated(ast.parse(code).body) == ["A.f", "h"]
