"""Code and docs use the field's terms: no metaphors, no private idiom.

Every word of every file is looked at: identifiers (split at underscores and
capitals), docstrings, comments, strings, pages, and the --help of every
command. For a part of the repository:

  pytest tests/test_language.py -k ldm_jax/sampling
  python tests/test_language.py ldm_jax/sampling docs README.md
"""

import importlib
import io
import pathlib
import re
import sys
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("ldm_jax", "configs", "docs", "benchmarks", "examples", "tests")
SINGLE = ("train.py", "sample.py", "setup.py", "setup.cfg", "pyproject.toml")
SINGLE += ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Dockerfile")
SINGLE += ("Makefile", ".ci/run", "mkdocs.yml")
ENDINGS = {".py", ".md", ".ipynb"}

# This file lists the words. Old run folders are read by old names.
EXEMPT = ("tests/test_language.py", "ldm_jax/config_upgrade.py")

# Words that may stand nowhere, and what to write instead.
WORDS = {
  "door doors": "command, entry point, input",
  "ear ears": "text encoder, image encoder",
  "hear hears heard hearing unheard": "encode_conditions, is conditioned on",
  "tell tells told telling": "given, says, passes; distinguish",
  "darkroom darkrooms develops": "LatentCodec, decode",
  "studio studios": "Pipeline",
  "vigil vigils": "monitor",
  "road roads": "attention_backend, code path",
  "silence silences": "unconditional",
  "tower towers": "text encoder, image encoder",
  "legal legality illegal": "valid",
  "room rooms": "folder, module; space",
  "house housed": "package",
  "stranger strangers": "untrusted, third party",
  "beside": "next to, concatenated with, with",
  "speak speaks spoken speech": "logs, reports, reads and writes",
  "listen listens listening": "reads, is conditioned on",
  "picture pictures": "image, images",
  "landing": "final_sigma",
  "beneath": "base_spacing",
  "judge judges judged judging judgement": "classifier, measure, evaluate",
  "drown drowns drowned": "has_zero_terminal_snr",
  "journal journals": "MetricWriter, log",
  "ledger ledgers": "log",
  "likeness obedience verdict verdicts": "distribution distance, accuracy",
  "zoo": "tfds_source",
  "steadied": "skip_bad_updates",
  "wording": "prompt_cleaning",
  "dialect dialects": "PromptSyntax",
  "redrawing": "reconstruct",
}
FORBIDDEN = {w: new for old, new in WORDS.items() for w in old.split()}

# Phrases, by regular expressions over a paragraph with single spaces.
PHRASES = {
  r"(goes|go|gone|going|went) on (with|from)|goes on\b": "resumes",
  r"what (is|it is|was) said|says its": "the condition",
  r"by heart": "memorised",
  r"shares? of": "fraction of",
  r"ways? between": "interpolation between",
  r"(all|on) (on )?the way\b|the way (back|out|in)\b": "backward pass, output",
  r"weights of words": "prompt weighting",
  r"brings? to life": "instantiates",
  r"python3? -m ldm_jax\.(commands|cli)\.": "ldm-jax NAME",
}

# Identifiers that were renamed; as English words they may stand in prose.
RENAMED = """
  Road Studio Darkroom Opened Programs Chapter Pace Journal Vigil Keeping
  Steadied Sound Ledger Trunk Said Order Settings Given Recipe Album Zoo Seen
  Words Prompts Dialect is_drowned low_noise by_rows spacing_beneath
  remembering
"""
IDENTIFIERS = set(RENAMED.split())

# "draw" is right for random numbers, and Pillow's module is called ImageDraw.
DRAW = re.compile(r"(?<![a-z])(re)?(draw|draws|drawn|drew|drawing|drawings)\b")
RANDOM = re.compile(
  r"noise|random|\bkeys?\b|\brng\b|seed|uniform|normal|gaussian|posterior"
  r"|N\(0|numbers?\b|distribution|probabilit|generator|times?\b|levels?\b"
  r"|dropout|drop|shuffle|crop|mirror|ImageDraw|torch|strok",
  re.IGNORECASE,
)
# draw(shape), drawn[i]: functions and variables of random numbers.
CALL = re.compile(r"\bdraw\(|\bdraws\)|\b(drawn|draws)( =|\.astype|\)|\])")

# Grain is the library that reads batches; film grain and the like are not.
GRAIN = re.compile(r"(?<![a-z])grain(s|y)?\b")
LIBRARY = re.compile(
  r"import grain|grain\.|from grain|\"grain\"|grain >=|Grain"
)

# A critic is the discriminator; networks that measure are metric networks.
CRITIC = re.compile(r"(?<![a-z])critics?\b")

# Names of other libraries that hold one of these words.
FOREIGN = re.compile(r"\.tell\(\)")  # position in a file

# Published texts that hold one of these words: (file, line's text).
PUBLISHED: tuple[tuple[str, str], ...] = (
  # The captions of a published data set.
  ("ldm_jax/data/glyphs/captions.py", "picture with"),
  ("tests/test_glyphs.py", " picture "),
)


def files() -> list[str]:
  """Paths of all that is read, from the root."""
  found = [
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.suffix in ENDINGS and "__pycache__" not in path.parts
  ]
  found += [ROOT / name for name in SINGLE]
  names = sorted(path.relative_to(ROOT).as_posix() for path in found)
  return [name for name in names if name not in EXEMPT]


def words(line: str) -> list[str]:
  """Words in small letters; isValidName and is_valid_name are three each."""
  return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", line)]


def in_line(line: str, around: str, name: str) -> list[str]:
  """What one line says that it should not, each with what to write instead."""
  if any(name == file and text in line for file, text in PUBLISHED):
    return []
  present = words(FOREIGN.sub("", line))
  bad = [f"{w} ({FORBIDDEN[w]})" for w in present if w in FORBIDDEN]
  spaced = " ".join(present)
  if DRAW.search(spaced) and not (RANDOM.search(around) or CALL.search(line)):
    bad.append("draw (generate, sample; render, plot)")
  if GRAIN.search(spaced) and not LIBRARY.search(line):
    bad.append("grain (the library's name)")
  if CRITIC.search(spaced) and re.search(r"evaluation|metric", name):
    bad.append("critic (metric network)")
  return bad


def identifiers(text: str) -> list[tuple[int, str]]:
  """Line numbers and old names among a Python file's identifiers."""
  tokens = tokenize.generate_tokens(io.StringIO(text).readline)
  return [
    (token.start[0], token.string)
    for token in tokens
    if token.type == tokenize.NAME and token.string in IDENTIFIERS
  ]


def faults(text: str, name: str) -> list[str]:
  """One line per fault of a text: where, what, and what to write instead."""
  lines, found = text.splitlines(), []
  for i, line in enumerate(lines):
    around = " ".join(lines[max(i - 2, 0) : i + 3])
    found += [(i + 1, bad) for bad in in_line(line, around, name)]
    # A phrase may go on in the next line, behind a comment's sign.
    pair = " ".join([line, *lines[i + 1 : i + 2]])
    pair, start = re.sub(r"[\s#*>]+", " ", pair), len(line.strip())
    found += [
      (i + 1, f"{match.group()!r} ({new})")
      for phrase, new in PHRASES.items()
      for match in re.finditer(rf"\b({phrase})", pair)
      if match.start() <= start
    ]
  if name.endswith(".py"):
    found += [(i, f"identifier {old}") for i, old in identifiers(text)]
  return [f"{name}:{i}: {bad}" for i, bad in sorted(set(found))]


def help_of(command: str) -> str:
  module = importlib.import_module(f"ldm_jax.cli.{command}")
  return module.parser().format_help()


def commands() -> list[str]:
  from ldm_jax.cli.main import COMMANDS

  return list(COMMANDS)


@pytest.mark.parametrize("name", files())
def test_a_file_uses_the_fields_terms(name):
  found = faults((ROOT / name).read_text(), name)
  assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("command", commands())
def test_help_uses_the_fields_terms(command):
  found = faults(help_of(command), f"ldm-jax {command} --help")
  assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
  "line",
  [
    "def hear(batch):",
    "class HearingAid:",
    "# the picture is drawn",
    "the run is gone",  # and, in the next line, "on with"
    "told = flags.told",
    "x = Studio(model)",
    "draws an image for every prompt",
    "python -m ldm_jax.cli.evaluate runs/X",
  ],
)
def test_a_metaphor_is_found(line):
  assert faults(f"{line}\n# on with its steps", "example.py")


@pytest.mark.parametrize(
  "line",
  [
    "key = jax.random.key(0)  # noise is drawn from N(0, 1)",
    "import grain.python as loading",
    "the critic learns from the same forward pass",
    "near = appear(clear, year)",
    "Order = 3 of convergence",
  ],
)
def test_plain_english_is_not(line):
  assert not faults(line, "example.md")


if __name__ == "__main__":
  asked = [path.strip("/") for path in sys.argv[1:]] or [""]
  for name in files():
    if name.startswith(tuple(asked)):
      for fault in faults((ROOT / name).read_text(), name):
        print(fault)
