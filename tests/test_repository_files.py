"""Dockerfile, workflows, templates and citation: their structure."""

import configparser
import json
import os
import re

import pytest
import yaml
from documentation import ROOT

import ldm_jax

INSTRUCTIONS = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN"}
INSTRUCTIONS |= {"USER", "WORKDIR"}


def read(path):
  return yaml.safe_load((ROOT / path).read_text())


def docker_instructions():
  """(instruction, arguments) of the Dockerfile, in order."""
  text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
  lines = re.sub(r"\\\n\s*", " ", text).splitlines()
  return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def setup():
  parser = configparser.ConfigParser()
  parser.read(ROOT / "setup.cfg")
  return parser


def test_the_dockerfile_has_known_instructions_and_two_stages():
  found = docker_instructions()
  assert {name for name, _ in found} <= INSTRUCTIONS
  stages = [text for name, text in found if name == "FROM"]
  assert len(stages) == 2 and stages[0].endswith(" AS build")
  assert all("${PYTHON}" in stage for stage in stages)


def test_the_dockerfile_copies_what_the_package_is_built_from():
  copied = set()
  for name, text in docker_instructions():
    if name == "COPY" and "--from" not in text:
      *sources, _ = text.split()
      copied |= set(sources)
      assert all((ROOT / source).exists() for source in sources)
  assert {"setup.cfg", "setup.py", "pyproject.toml"} <= copied
  assert {"README.md", "LICENSE", "ldm_jax", "configs"} <= copied
  ignored = (ROOT / ".dockerignore").read_text().split()
  assert ignored[0] == "*"
  assert {f"!{name}" for name in copied} <= set(ignored)


def test_the_dockerfile_ends_as_a_user_with_the_command():
  found = docker_instructions()
  last = dict(found)
  assert last["USER"] not in ("root", "0")
  assert json.loads(last["ENTRYPOINT"]) == ["ldm-jax"]
  assert json.loads(last["CMD"]) == ["--help"]
  names = [name for name, _ in found]
  assert names.index("USER") > max(
    i for i, name in enumerate(names) if name == "RUN"
  )


def test_the_dockerfile_and_setup_agree():
  parser = setup()
  text = (ROOT / "Dockerfile").read_text()
  version = re.search(r"ARG PYTHON=([\d.]+)", text)[1]
  classifiers = parser["metadata"]["classifiers"]
  assert f"Programming Language :: Python :: {version}" in classifiers
  for extra in re.findall(r"--build-arg EXTRA=(\w+)", text):
    assert extra in parser["options.extras_require"]


@pytest.mark.parametrize("name", ["ci.yml", "site.yml"])
def test_workflows_call_the_commands_of_the_repository(name):
  workflow = read(f".github/workflows/{name}")
  # YAML 1.1 reads the key `on` as true.
  assert set(workflow[True]) == {"push", "pull_request"}
  assert workflow["permissions"] == {"contents": "read"}
  runs = [
    step["run"]
    for job in workflow["jobs"].values()
    for step in job["steps"]
    if "run" in step
  ]
  (command,) = runs
  assert command in (".ci/run", "make docs")
  if command == ".ci/run":
    assert os.access(ROOT / command, os.X_OK)
  else:
    assert re.search(r"^docs:", (ROOT / "Makefile").read_text(), re.M)
  for job in workflow["jobs"].values():
    for step in job["steps"]:
      assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_templates_of_issues_have_fields(name):
  form = read(f".github/ISSUE_TEMPLATE/{name}")
  assert {"name", "description", "body"} <= set(form)
  ids = [field["id"] for field in form["body"]]
  assert len(set(ids)) == len(ids)
  assert all(field["attributes"]["label"] for field in form["body"])


def test_citation_and_changelog_are_of_this_version():
  citation = read("CITATION.cff")
  assert citation["cff-version"] == "1.2.0"
  assert citation["version"] == ldm_jax.__version__
  assert citation["license"] == setup()["metadata"]["license"]
  assert {"message", "title", "authors"} <= set(citation)
  versions = re.findall(
    r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M
  )
  assert versions[0] == ldm_jax.__version__
