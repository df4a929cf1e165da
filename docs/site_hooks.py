"""Hooks of MkDocs: pages of the repository outside docs/, and links to them.

The site also holds benchmarks/*.md with their images, examples/README.md,
CHANGELOG.md and CONTRIBUTING.md, under their paths in the repository, and a
page of every notebook. Links are written as GitHub reads them, relative to the
file in the repository, and are rewritten here.
"""

import json
import os
import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
OUTSIDE = ("benchmarks/*.md", "benchmarks/*/*.png", "examples/README.md")
OUTSIDE += ("CHANGELOG.md", "CONTRIBUTING.md")
NOTEBOOKS = "docs/notebooks"
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.M | re.S)


def on_files(files, config):
  """Adds the files outside docs/ and the pages of notebooks."""
  for pattern in OUTSIDE:
    for path in sorted(ROOT.glob(pattern)):
      name = path.relative_to(ROOT).as_posix()
      files.append(File.generated(config, name, abs_src_path=str(path)))
  for path in sorted((ROOT / NOTEBOOKS).glob("*.ipynb")):
    text = notebook_page(json.loads(path.read_text()))
    name = f"notebooks/{path.stem}.md"
    files.append(File.generated(config, name, content=text))
  return files


def on_page_markdown(markdown, page, config, files):
  """Rewrites links from paths of the repository to paths of the site."""
  source = page.file.src_uri
  parts = FENCE.split(markdown)
  # Of the parts, every second one is code.
  parts[::2] = [
    LINK.sub(lambda match: _rewritten(match, source, files), part)
    for part in parts[::2]
  ]
  return "".join(parts)


def _rewritten(match, source, files):
  before, target, after = match.groups()
  folder = posixpath.dirname(_in_repository(source))
  found = posixpath.normpath(posixpath.join(folder, target))
  site = found.removeprefix("docs/")
  if site.startswith("notebooks/"):
    site = re.sub(r"\.ipynb$", ".md", site)
  if files.get_file_from_path(site) is None:
    return match.group()  # MkDocs reports it
  link = os.path.relpath(site, posixpath.dirname(source) or ".")
  return before + link + after


def _in_repository(source):
  """The path in the repository of a page of the site."""
  is_inside = (ROOT / "docs" / source).exists()
  is_inside = is_inside or source.startswith("notebooks/")
  return f"docs/{source}" if is_inside else source


def notebook_page(notebook):
  """The Markdown of a notebook: text, code, printed lines and images."""
  parts = []
  for cell in notebook["cells"]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
      parts.append(text)
    elif cell["cell_type"] == "code":
      parts.append(f"```python\n{text}\n```")
      parts += [_output(each) for each in cell["outputs"]]
  return "\n\n".join(part for part in parts if part) + "\n"


def _output(output):
  if "text" in output:
    return f"```text\n{''.join(output['text'])}```"
  data = output.get("data", {})
  if "image/png" in data:
    image = "".join(data["image/png"]).replace("\n", "")
    return f'<img src="data:image/png;base64,{image}" alt="output">'
  if "text/plain" in data:
    return f"```text\n{''.join(data['text/plain'])}\n```"
  return ""
