"""What `pip install` of this repository gives: a working command line, without PyTorch, and the hooks' entries."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import typer
import yaml

from dropforge.cli.app import app
from dropforge_core.identity import DATA_SUFFIXES

ROOT = Path(__file__).parents[2]
OWN = {"dropforge", "dropforge_core", "tuner"}
SHARED = {
    "base_model": "functions/base_model.py",
    "hub": "functions/hub.py",
    "judging": "functions/judging.py",
}


def imported(*folders):
    """Top-level modules that the files of some folders import at run time."""
    for file in (file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(file.read_text())
        typing_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if id(node) in typing_only:
                continue
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield str(node.module).partition(".")[0]


def test_the_package_asks_for_what_it_imports():
    """Every library of the command line and the checks is a dependency, or comes with one that is."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {re.split(r"[^\w-]", name)[0].lower() for name in project["dependencies"]}
    comes_along = {
        "botocore": "boto3",
        "s3transfer": "boto3",
        "pydantic_core": "pydantic",
        "typing_extensions": "pydantic",
    }
    distributions = packages_distributions()
    needed = (
        set(imported("dropforge/cli", "functions/dropforge_core"))
        - set(sys.stdlib_module_names)
        - OWN
        - set(SHARED)
    )
    missing = {
        module for module in needed if comes_along.get(module, distributions[module][0].lower()) not in asked
    }
    assert missing == set()
    assert not {"torch", "transformers", "sagemaker"} & asked


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs `dropforge` as the wheel of this checkout has it, with nothing of the checkout on the path."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    (built,) = place.glob("*.whl")
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(place / "site")
    # -S leaves the .pth file of the editable install unread.
    path = os.pathsep.join([str(place / "site"), sysconfig.get_path("purelib")])

    def run(*arguments, cwd, code="from dropforge.cli import main; main()"):
        return subprocess.run(
            [sys.executable, "-S", "-c", code, *map(str, arguments)],
            cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip

    return run


def test_the_wheel_validates(installed, rows, tmp_path):
    """Installed in another repository, the checks run and the report is whole."""
    done = installed("validate", rows, "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == 24


def test_the_wheel_plans_and_says_what_it_lacks(installed, rows, tmp_path):
    """The catalogue and what is shared with the functions come along; the local AWS needs the repository."""
    planned = installed("plan", rows, "--base-config", tmp_path, cwd=tmp_path)
    assert (planned.returncode, "config.json" in planned.stderr) == (1, True)
    local = installed("local", "up", cwd=tmp_path)
    assert (local.returncode, "clone it" in local.stderr) == (2, True)


def test_the_wheel_decides_again(installed, tmp_path):
    """What recomputes a decision comes along, with the general questions."""
    code = "import dropforge.cli.decision; from dropforge_core.gate.general import questions; print(len(questions()))"
    done = installed(cwd=tmp_path, code=code)
    assert (done.returncode, done.stdout.strip()) == (0, "160"), done.stderr


def hooks():
    return {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}


@pytest.mark.parametrize("name", ["dropforge-validate", "dropforge-validate-folder"])
def test_a_hook_judges_the_files_that_it_is_given(installed, rows, tmp_path, name):
    """As pre-commit runs it: the entry, then the changed files that fit; a broken one fails, with its line."""
    hook = hooks()[name]
    assert {"language": "python", "require_serial": True}.items() <= hook.items()
    good, bad = tmp_path / "data/good", tmp_path / "data/bad"
    for folder, more in ((good, ""), (bad, "{broken\n")):
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text(rows.read_text() + more)
        (folder / "notes.txt").write_text("words")
    changed = ["data/good/train.jsonl", "data/good/notes.txt", "README.md", "package.json"]
    fitting = [file for file in changed if re.search(hook["files"], file)]
    assert fitting == ["data/good/train.jsonl"]
    command, *arguments = shlex.split(hook["entry"])
    assert command == "dropforge"
    assert installed(*arguments, *fitting, cwd=tmp_path).returncode == 0
    failed = installed(*arguments, *fitting, "data/bad/train.jsonl", cwd=tmp_path)
    assert failed.returncode == 1
    assert "train.jsonl:25" in failed.stdout


def test_the_hooks_know_the_usual_files():
    """JSON Lines, plain or compressed, fit by themselves; a repository's other JSON does not."""
    for hook in hooks().values():
        fitting = [suffix for suffix in DATA_SUFFIXES if re.search(hook["files"], f"data/train{suffix}")]
        assert fitting == [".jsonl", ".jsonl.gz", ".jsonl.zst"]


def test_the_workflow_s_commands_exist():
    """Every dropforge command of the example parses, and the example is a workflow."""
    workflow = yaml.safe_load((ROOT / "examples/ci/github-action.yml").read_text())
    steps = workflow["jobs"]["validate"]["steps"]
    lines = [words for step in steps if (words := shlex.split(step.get("run", "")))[:1] == ["dropforge"]]
    assert lines
    for _, name, *arguments in lines:
        command = typer.main.get_command(app).commands[name]
        command.make_context(name, arguments, resilient_parsing=False)
    # YAML reads the key `on` as true.
    assert set(workflow[True]) == {"pull_request", "push"}
    assert workflow["permissions"] == {"contents": "read"}
