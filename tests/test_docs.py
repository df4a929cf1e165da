"""The pages of docs/ name what exists, and their Python code runs."""

import importlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WHERE = (ROOT / "docs" / "where.md").read_text()
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]*`[^|]+) \| ([^|]+) \|$", WHERE, re.M)


@pytest.mark.parametrize("subject, modules, names", ROWS, ids=lambda v: v[:40])
def test_what_where_md_names_exists(subject, modules, names):
  found = [
    importlib.import_module(each) for each in re.findall(r"`([\w.]+)`", modules)
  ]
  for name in re.findall(r"`(\w+)`", names):
    assert any(hasattr(module, name) for module in found), (subject, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_files_exist(page):
  text = page.read_text()
  for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
    assert "://" in target or (page.parent / target).exists(), target
  for name in re.findall(
    r"`((?:configs|ldm_jax|benchmarks|tests)/[^`*]+)`", text
  ):
    assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_and_flags_exist(page):
  """Every `ldm-jax NAME --flag` of a page is one that the command takes."""
  from ldm_jax.cli.main import COMMANDS

  for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S):
    text = re.sub(r"#.*", "", block.replace("\\\n", " "))
    for name, rest in re.findall(r"ldm-jax (\w+)(.*)", text):
      assert name in COMMANDS, name
      parser = importlib.import_module(f"ldm_jax.cli.{name}").parser()
      for flag in re.findall(r"(?<= )(--[\w-]+)(?![\w.-])", rest):
        options = parser._option_string_actions
        assert flag.replace("-", "_").replace("__", "--", 1) in options, flag


def test_python_blocks_are_python():
  for page in PAGES:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
      compile(block, page.name, "exec")
