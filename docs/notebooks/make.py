"""Writes the notebooks from the Python files next to this one, and runs them.

  python docs/notebooks/make.py FOLDER

FOLDER holds the models that the notebooks name, see `tests/small_models.py`.
Cells begin with `# %%`; those of text with `# %% [markdown]`.
"""

import pathlib
import re
import sys

import nbclient
import nbformat

HERE = pathlib.Path(__file__).parent
NAMES = (
  "from_pretrained_in_jit",
  "train_both_stages",
  "write_a_sampler",
  "write_a_conditioner",
  "finetune_with_lora",
  "measure",
)
CELL = re.compile(r"^# %%( \[markdown\])?\n", re.M)


def notebook(name: str) -> nbformat.NotebookNode:
  """The notebook of a Python file, without outputs."""
  _, *parts = CELL.split((HERE / f"{name}.py").read_text())
  made = nbformat.v4.new_notebook()
  pairs = zip(parts[::2], parts[1::2], strict=True)
  for number, (is_text, part) in enumerate(pairs):
    text = part.strip("\n")
    if is_text:
      text = re.sub(r"^# ?", "", text, flags=re.M)
      cell = nbformat.v4.new_markdown_cell(text)
    else:
      cell = nbformat.v4.new_code_cell(text)
    cell.id = f"cell-{number}"
    made.cells.append(cell)
  made.metadata.kernelspec = {
    "name": "python3",
    "display_name": "Python 3",
    "language": "python",
  }
  return made


def run(made: nbformat.NotebookNode, folder: pathlib.Path) -> None:
  """Executes the cells in a folder; keeps printed lines, not the log."""
  client = nbclient.NotebookClient(
    made, timeout=600, resources={"metadata": {"path": str(folder)}}
  )
  client.execute()
  for cell in made.cells:
    cell.metadata.pop("execution", None)
    if cell.cell_type == "code":
      cell.execution_count = None
      cell.outputs = [
        output
        for output in cell.outputs
        if output.output_type != "stream" or output.name == "stdout"
      ]


def main() -> None:
  """Writes all of them."""
  for name in NAMES:
    made = notebook(name)
    run(made, pathlib.Path(sys.argv[1]))
    nbformat.write(made, HERE / f"{name}.ipynb")
    print(name)


if __name__ == "__main__":
  main()
