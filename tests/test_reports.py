"""The table of public reports names tests that exist, once a thread."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
TABLE = (ROOT / "benchmarks" / "reports.md").read_text()
ROW = (
  r"^\| \[([\w.-]+/[\w.-]+)#(\d+)\]\(([^)]+)\) \|.*\| "
  r"(test_\w+\.py)::(test_\w+) \|$"
)


def test_every_report_has_a_test():
  lines = [line for line in TABLE.splitlines() if line.startswith("| [")]
  rows = [re.match(ROW, line) for line in lines]
  assert len(rows) >= 50 and all(rows)
  threads = set()
  for name, number, address, file, test in (row.groups() for row in rows):
    assert address == f"https://github.com/{name}/issues/{number}"
    source = (ROOT / "tests" / file).read_text()
    assert f"\ndef {test}(" in source, (file, test)
    threads.add((name, number))
  assert len(threads) == len(rows)
