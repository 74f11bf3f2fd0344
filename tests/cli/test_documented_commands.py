"""Every command in README and docs exists, with the options it is shown with."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from dropforge.cli.app import app
from dropforge_core.dataset.recipe_problems import read_recipe

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("examples/**/README.md")),
]
COMMAND = re.compile(r"(?<![\w./-])dropforge (?=[a-z])([^\n`#|]*)")
TARGET = re.compile(r"(?:^|`)make ([a-z-]+)", re.MULTILINE)


def fragments(page: Path) -> list[str]:
    """Code of a page: fenced blocks and spans; prose may say `dropforge` as it likes."""
    text = page.read_text()
    fenced = re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)
    return fenced + re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def documented() -> list[tuple[str, str]]:
    return sorted(
        {
            (str(page.relative_to(ROOT)), match[1].strip())
            for page in PAGES
            for code in fragments(page)
            for match in COMMAND.finditer(code)
            if not code[: match.start()].endswith(("--name ", "cd ", "pip install "))
        }
    )


@pytest.mark.parametrize(("page", "line"), documented())
def test_a_documented_command_exists(page, line):
    """The command is there, and so is every option that the page shows it with."""
    words = shlex.split(line.replace("[", " ").replace("]", " ").replace("…", ""))
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"{page}: dropforge {line}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known | {"--help"}, (
        f"{page}: {line}"
    )


def test_the_pages_show_commands():
    """The search above finds something, so that it can fail."""
    assert len(documented()) > 20


def blocks(kind: str) -> list[tuple[str, str]]:
    """The fenced blocks of one language, with their pages; those of pre-commit are no recipes."""
    found = (
        (str(page.relative_to(ROOT)), body)
        for page in PAGES
        for body in re.findall(rf"```{kind}\n(.*?)```", page.read_text(), re.DOTALL)
    )
    return [(page, body) for page, body in found if "repos:" not in body]


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_a_documented_recipe_is_one(page, text):
    """What a page shows as a recipe, or as a part of one, has no fault."""
    recipe, problems = read_recipe(text, "base_model: org/model\n")
    assert recipe is not None
    assert problems == (), page


@pytest.mark.parametrize(("page", "text"), blocks("json"))
def test_a_documented_json_block_is_json(page, text):
    """What a page shows as JSON is JSON, an ellipsis in a list aside."""
    assert isinstance(json.loads(text.replace(", ...]", "]")), dict), page


def test_every_documented_target_exists():
    """`make x` in a page is a target of the Makefile, and each target has a line of help."""
    makefile = (ROOT / "Makefile").read_text()
    helped = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    shown = {name for page in PAGES for code in fragments(page) for name in TARGET.findall("`" + code)}
    assert shown
    assert shown <= helped
    assert set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()) == helped


def test_every_file_that_the_makefile_names_exists():
    """A suite or script that moves takes its target with it."""
    named = re.findall(
        r"(?<![\w./-])(?:tests|training_image|requirements|examples)/[\w./-]+",
        (ROOT / "Makefile").read_text(),
    )
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
