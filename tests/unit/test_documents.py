"""What the documents name is there, and what users look up is explained."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import llama_runner
from llama_runner import (
    ContextParams,
    GenerationParams,
    ModelMetadata,
    ModelParams,
    errors,
    loaders,
    memory,
    tokens,
)
from llama_runner.results import ContextInfo, Receipt, Timings

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "llama_runner"
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *PACKAGE.rglob("*.md")],
    key=lambda path: path.as_posix(),
)


def files_named() -> dict[str, set[Path]]:
    """What the tables name, of the folder that the table's header says, and the files it is."""
    found: dict[str, set[Path]] = {}
    folder = ROOT
    for line in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines():
        if header := re.match(r"\| (?:File|In)(?: `(.*?)`)? \|", line):
            folder = ROOT / (header[1] or "")
        elif row := re.match(r"\| (`.*?) \|", line):
            for name in re.findall(r"`(.*?)`", row[1]):
                found[f"{folder.name}/{name}"] = set(folder.glob(name.rstrip("/")))
    return found


def test_the_file_tables_name_nothing_that_is_not_there() -> None:
    assert [name for name, files in files_named().items() if not files] == []


def test_the_file_tables_name_every_folder_and_module_of_the_package() -> None:
    """Or the folder that it is in."""
    kinds = ("*.py", "*.pyi", "*.pyx", "*.pxd", "*.pxi", "*.hpp", "*.cpp")
    sources = {path for kind in kinds for path in PACKAGE.rglob(kind) if path.stat().st_size}
    sources = {
        path for path in sources if path.name not in ("__init__.py", "__init__.pyi", "__main__.py")
    }
    named = set().union(*files_named().values())
    assert [path for path in sources if not named & {path, *path.parents}] == []


def test_each_module_says_what_is_in_it() -> None:
    silent = [
        path
        for path in PACKAGE.rglob("*.py")
        if not (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
    ]
    assert silent == []


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as links spell them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, anchor = target.partition("#")
        place = page.parent / name if name else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_overviews_stay_short(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 150


def test_every_page_is_in_a_table_of_contents() -> None:
    pages = set((ROOT / "docs").rglob("*.md"))
    listed = {ROOT / "docs" / "index.md"}
    for page in pages:
        for toctree in re.findall(
            r"^```\{toctree\}\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
        ):
            names = [line for line in toctree.split() if not line.startswith(":")]
            listed |= {page.parent / f"{name}.md" for name in names}
    assert pages - listed == set()


def test_the_reference_lists_every_public_name() -> None:
    pages = (ROOT / "docs" / "reference").glob("*.md")
    listed = set(re.findall(r"^\.\. auto\w+:: (\S+)$", "\n".join(map(Path.read_text, pages)), re.M))
    listed_names = {name.rpartition(".")[2] for name in listed} | set(errors.__all__)
    public = {*llama_runner.__all__, *loaders.__all__, *memory.__all__, *tokens.__all__}
    # Summarize is what summarize() returns.
    assert public - listed_names == {"__version__", "Summarize"}


@pytest.mark.parametrize(
    "kind",
    [GenerationParams, ModelParams, ContextParams, ModelMetadata, Receipt, Timings, ContextInfo],
)
def test_help_explains_each_field(kind: type) -> None:
    fields = kind.__annotations__.keys() - {"refusal", "kind_of_name", "model_config"}
    assert fields
    for name in fields:
        assert re.search(rf"^ {{8}}{name}: \S", kind.__doc__ or "", re.MULTILINE), name


def test_no_class_is_longer_than_three_hundred_lines() -> None:
    long = [
        (path.name, node.name)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno >= 300
    ]
    assert long == []
