"""The documentation names what exists: files, headings, and the public API."""

import re
from importlib import import_module
from pathlib import Path

import pytest

import posefix_jax

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "launch").glob("*.md")]


def anchors_of(page: Path) -> set[str]:
    """The ids that headings get: lower case, spaces as hyphens, other characters dropped."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors_of(there), f"{page.name} links to {link}"


def test_the_api_page_has_the_public_names():
    documented = set()
    for name in re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.M):
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name
        documented.add(attribute)
    public = {name for name in posefix_jax.__all__ if callable(getattr(posefix_jax, name))}
    assert public <= documented, public - documented


def test_readmes_names_can_be_imported():
    """The Python of README and the first page, but for the photograph."""
    for page in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
        imports = [line for line in code.splitlines() if line.startswith(("import", "from"))]
        assert imports
        exec("\n".join(imports), {})
    exec("from posefix_jax.core import heatmaps, geometry, losses, augment", {})


def test_tests_that_docs_name_exist():
    """`test_x.py::test_y`, and `::test_z` after it for another one of the same file."""
    for page in PAGES:
        file = None
        for name, test in re.findall(r"`(test_\w+\.py)?(?:::(\w+))?`", page.read_text()):
            if not name and not test:
                continue
            file = name or file
            (path,) = (ROOT / "tests").rglob(file)
            assert not test or f"def {test}(" in path.read_text(), f"{page.name} names {file}::{test}"
