"""What the pages show exists: commands with their options, models, targets, options in the text, pages that are linked."""

import json
import re
import tomllib
from pathlib import Path

import click
import pytest
from pages import PAGES, README, ROOT, blocks, commands, links

from lorita_deploy.cli import cli
from lorita_deploy.errors import LoritaDeployError
from lorita_deploy.ports import MODEL_FAMILIES, MODELS, names
from lorita_deploy.profiles import all_profiles
from lorita_deploy.targets import all_targets, load_target

OURS = [(page, words) for page, text in PAGES.items() for words in commands(text) if words[0] == "lorita-deploy"]
RUNNER = (ROOT / "lorita_deploy" / "bundle" / "run.py").read_text(encoding="utf-8")
OF_THE_PAGES = {"tiny", "tiny-wide", "yournets"}
"""Models and families that the recipes of docs/extending.md make."""


def parsed(words):
    """The command that these words call, with its parameters as click reads them. Raises ``click.UsageError``."""
    command, context, rest = cli, None, words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        # As the command line makes it: a command keeps the help options of the first context that it meets.
        context = click.Context(command, info_name=words[0], parent=context, **cli.context_settings)
        name, *rest = rest
        command = command.get_command(context, name)
        assert command is not None, f"there is no command {name}"
    if rest in (["--help"], ["-h"], ["--version"]):
        return {}
    return command.make_context(words[1], list(rest), parent=context).params


@pytest.mark.parametrize(("page", "words"), OURS, ids=[f"{page}: {' '.join(words)}" for page, words in OURS])
def test_every_command_can_be_called_as_shown(page, words):
    try:
        found = parsed(words)
    except click.UsageError as error:
        pytest.fail(f"{page}: {' '.join(words)}: {error.message}")
    model, target = found.get("model"), found.get("target")
    if model and ":" in model:
        assert model.split(":")[0] in OF_THE_PAGES | set(names(MODEL_FAMILIES))
    elif model:
        assert model in OF_THE_PAGES | set(names(MODELS))
    if target and not target.endswith(".toml"):
        load_target(target)


def test_the_pages_have_commands():
    assert len(OURS) > 30
    assert {page for page, _ in OURS} >= {README, "docs/getting-started.md", "docs/devices.md"}


def test_a_command_that_does_not_exist_is_found_out():
    for wrong in ("build --modell vgg16", "bild", "bench --threads none", "targets check model.onnx", "build --precision fp8"):
        with pytest.raises((click.UsageError, AssertionError)):
            parsed(["lorita-deploy", *wrong.split()])
    with pytest.raises(LoritaDeployError):
        load_target("jetson@jp9")


def leaves(command):
    """Every command that is no group."""
    return (
        [leaf for each in command.commands.values() for leaf in leaves(each)] if isinstance(command, click.Group) else [command]
    )


OPTIONS = {name for leaf in leaves(cli) for each in leaf.params for name in (*each.opts, *each.secondary_opts)}
OPTIONS |= {"--help", "--version"} | set(re.findall(r'add_argument\("(--[\w-]+)"', RUNNER))


@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"docs/cli.md"}))
def test_every_option_that_a_page_speaks_of_exists(page):
    text = re.sub(r"^```bash\n.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    spoken = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    assert spoken <= OPTIONS, spoken - OPTIONS


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_runner_and_of_benchmarks_exist(page):
    for words in commands(PAGES[page]):
        if words[:2] in (["python3", "run.py"], ["python", "run.py"]):
            assert {word for word in words[2:] if word.startswith("-")} <= set(re.findall(r'"(--[\w-]+)"', RUNNER)), words
        elif words[0].startswith("python") and len(words) > 1 and words[1].startswith("benchmarks/"):
            assert (ROOT / words[1]).exists(), words


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in links(PAGES[page]):
        assert target.startswith("http") or ((ROOT / page).parent / target).exists(), target


def test_every_page_can_be_found_from_the_readme():
    linked = {(ROOT / target).resolve() for target in links(PAGES[README])}
    missing = [page for page in PAGES if page.startswith("docs/") and (ROOT / page).resolve() not in linked]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_fences_are_closed_and_say_their_language(page):
    opened = re.findall(r"^```(.*)$", PAGES[page], flags=re.MULTILINE)
    assert len(opened) % 2 == 0
    assert all(opened[0::2])
    assert not any(opened[1::2])


def test_json_and_toml_shown_anywhere_can_be_read():
    for text in PAGES.values():
        for block in blocks(text, "toml"):
            tomllib.loads(block)
        for block in blocks(text, "json"):
            json.loads(block)


def test_pages_are_short():
    """A page that nobody reads to the end helps nobody; the generated reference is looked things up in."""
    for page, text in PAGES.items():
        assert page == "docs/cli.md" or text.count("\n") <= 420, page
        assert not [line for line in text.splitlines() if len(line) > 400], page


def test_paths_are_those_of_the_repository():
    """Files of ours that a page names in backticks are there."""
    for page, text in PAGES.items():
        for name in re.findall(r"`((?:lorita_deploy|sample_models|exporters|tests|benchmarks|docs)/[\w./-]*)`", text):
            assert (ROOT / name).exists(), f"{page}: {name}"
            assert not Path(name).is_absolute()


def test_the_figures_of_the_staircase_are_the_measured_ones():
    measured = json.loads((ROOT / "benchmarks" / "staircase.json").read_text())
    shown = re.findall(
        r"^\| (features\.\d+) \| (\w+) (\d+) \| ([\d.]+) \| ([\d.]+) \|$", PAGES["docs/concepts.md"], re.MULTILINE
    )
    assert len(shown) == 7
    for layer, form, size, macs, time in shown:
        row = next(row for row in measured[layer]["rows"] if (row["form"], row["size"]) == (form, int(size)))
        assert (f"{row['macs']:.2f}", f"{row['time']:.2f}") == (macs, time)


def test_the_tables_of_the_jetsons_are_those_of_the_target_files():
    page = PAGES["docs/jetson.md"]
    for target in all_targets():
        if target.name.startswith("jetson"):
            profiles = ", ".join(f"`{name}`" for name in target.profiles)
            assert f"| `{target.name}` | {profiles} | `{target.default_profile}` |" in page
    for name, each in all_profiles().items():
        facts = (
            each.title.removeprefix("JetPack "),
            ", ".join(each.l4t) or "-",
            each.tensorrt,
            each.cuda,
            each.python,
            each.opset,
        )
        assert f"| `{name}` | {' | '.join(map(str, facts))} |" in page
