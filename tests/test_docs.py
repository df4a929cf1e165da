"""The pages of docs/ name what exists, and their Python code runs."""

import importlib
import re

import pytest
import yaml
from documentation import DOCS, PAGES, ROOT, blocks, commands, name_of

import ldm_jax

WHERE = (ROOT / "docs" / "where.md").read_text()
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]*`[^|]+) \| ([^|]+) \|$", WHERE, re.M)


@pytest.mark.parametrize("subject, modules, names", ROWS, ids=lambda v: v[:40])
def test_what_where_md_names_exists(subject, modules, names):
  found = [
    importlib.import_module(each) for each in re.findall(r"`([\w.]+)`", modules)
  ]
  for name in re.findall(r"`(\w+)`", names):
    assert any(hasattr(module, name) for module in found), (subject, name)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_files_exist(page):
  text = page.read_text()
  for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
    assert "://" in target or (page.parent / target).exists(), target
  for name in re.findall(
    r"`((?:configs|ldm_jax|benchmarks|tests)/[^`*]+)`", text
  ):
    assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_parsed(page):
  """Every `ldm-jax NAME ...` of a page is one that its parser takes."""
  from ldm_jax.cli.main import COMMANDS

  for name, *rest in commands(page):
    if name.startswith("-"):
      continue
    assert name in COMMANDS, name
    parser = importlib.import_module(f"ldm_jax.cli.{name}").parser()
    _, others = parser.parse_known_args(rest)
    fields = [each for each in others if each != "--help-config"]
    assert all(each.startswith("--config.") for each in fields), fields
    assert not others or name in ("train", "prepare", "plan"), others


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_are_python(page):
  for block in blocks(page, "python"):
    compile(block.text, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_are_of_one_piece(page):
  """Every run of rows begins with a head and a line under it."""
  text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
  for table in re.findall(r"(?:^\|.*\n?)+", text, re.M):
    head, *rows = table.splitlines()
    assert rows and re.fullmatch(r"\|[-:| ]+\|", rows[0]), head


def navigation(entries):
  for entry in entries:
    if isinstance(entry, dict):
      (entry,) = entry.values()
    yield from [entry] if isinstance(entry, str) else navigation(entry)


def test_every_page_is_in_the_navigation_of_the_site():
  pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
  pages |= {f"benchmarks/{p.name}" for p in (ROOT / "benchmarks").glob("*.md")}
  notebooks = (DOCS / "notebooks").glob("*.ipynb")
  pages |= {f"notebooks/{path.stem}.md" for path in notebooks}
  outside = ("examples/README.md", "CHANGELOG.md", "CONTRIBUTING.md")
  pages |= {name for name in outside if (ROOT / name).exists()}
  site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
  named = set(navigation(site["nav"]))
  assert named - pages == set(), "of mkdocs.yml, which do not exist"
  assert pages - named == set(), "which the nav of mkdocs.yml must name"


@pytest.mark.parametrize("name", ldm_jax.__all__)
def test_every_public_name_is_in_the_reference_with_an_example(name):
  """A request's example is that of the function that takes it."""
  reference = "".join(p.read_text() for p in (DOCS / "api").glob("*.md"))
  _, *entries = re.split(r"^::: ", reference, flags=re.M)
  found = [e for e in entries if e.split()[0].endswith(f".{name}")]
  assert found, f"a page of docs/api must have ::: MODULE.{name}"
  assert "```python" in found[0] or (
    name.endswith("Request") and f"ldm_jax.{name}(" in reference
  ), f"::: ...{name} must be followed by an example"
