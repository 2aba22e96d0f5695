"""The pages tell the truth: commands and programs run, messages exist, links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import onnx
import pytest
from pages import DOCS, PAGES, ROOT, Block, agrees, blocks
from tables import mostly

import crelu_deploy
from crelu_deploy.cli import run
from crelu_deploy.cli.commands import cli

NETWORK = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] no_crelu)
<float[2,3,3,3] w = {WEIGHTS}>
{ z = Conv(x, w) n = Neg(z) c = Concat<axis=1>(z, n) y = Relu(c)
  p = Relu(z) q = Neg(p) no_crelu = Concat<axis=1>(p, q) }"""

BRIEF = {
    "bench": ("--runs", "5", "--seconds", "1"),
    "deploy": ("--runs", "5", "--seconds", "1", "--budget", "0.2"),
    "export": ("--budget", "0.2"),
    "optimize": ("--budget", "0.2"),
    "plan": ("--budget", "0.2"),
}
"""Verb -> options with which a test runs it: the same results, measured for a shorter time."""

NOT_RUN = {
    "docs/quickstart.md": ["needs a package index", "it is a line for a shell's start-up file"],
    "docs/reference/cli.md": ["these are lines for a shell's start-up file"],
    "docs/with-a-gpu.md": [
        "needs the package tensorrt-rtx, and the second line a GPU",
        "needs a GPU",
    ],
}
"""Page -> why each of its blocks that no test executes is not executed."""

BEFORE = {"README.md": "import numpy as np\nimage = np.zeros((1, 1, 28, 28), np.float32)"}
"""Page -> what its programs take as given."""

LONG = ("docs/from-a-checkpoint.md", "docs/quickstart.md")
"""Pages whose exports and measurements take more than ten seconds."""

EXAMPLES = ("docs/extend-a-spelling.md", "docs/extend-a-lowering.md", "docs/extend-a-backend.md")


@pytest.fixture(scope="session")
def stocked(shared_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that the pages count on."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("digits_crelu.pt", "digits_samples.npz"):
        shutil.copy(ROOT / "examples" / name, folder)
    for name in ("digits_crelu.crelu", "digits", "faceboxes.crelu"):
        shutil.copytree(shared_bundle, folder / name)
    text = NETWORK.replace("{WEIGHTS}", "{" + ", ".join(str(i / 50) for i in range(54)) + "}")
    onnx.save(onnx.parser.parse_model(text), folder / "network.onnx")
    network, save = (b for b in blocks("docs/new-network.md") if b.kind == "python")
    (folder / network.title).write_text(network.text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        exec(save.text, {})
    return folder


@pytest.fixture
def workplace(stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``stocked``, which is the current folder and searched for modules."""
    folder = shutil.copytree(stocked, tmp_path / "here")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("COLUMNS", "100")
    return Path(folder)


Perform = Callable[[str, str], str]


@pytest.fixture
def perform(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Perform:
    """Run one command here, compare exit code and output with those shown, return the output."""

    def perform(command: str, shown: str) -> str:
        program, *arguments = shlex.split(command, comments=True)
        arguments = {"crelu": [], "crelu-export": ["export"]}[program] + arguments
        capsys.readouterr()
        code = run([*arguments, *BRIEF.get(arguments[0], ())])
        out, err = capsys.readouterr()
        printed = out + "".join(x for x in err.splitlines(True) if not x.startswith("... "))
        assert (code != 0) == bool(re.search("^error:", shown, re.M)), (command, printed)
        assert agrees(shown, printed) or not shown, f"{command}\n{printed}"
        return printed

    return perform


class Reader:
    """Does what a page says, block by block."""

    def __init__(self, page: str, perform: Perform, patch: pytest.MonkeyPatch) -> None:
        self.page, self.perform, self.patch = page, perform, patch
        self.names: dict[str, Any] = {"__name__": "page"}
        exec(BEFORE.get(page, ""), self.names)

    def read(self, block: Block) -> None:
        """Execute a block."""
        if block.kind == "console":
            for command, shown in block.commands:
                self.perform(command, shown)
        elif block.kind == "python" and block.title.startswith("crelu_deploy/"):
            self._install(block)
        elif block.kind == "python":
            exec(compile(block.text, f"{self.page} {block.title}", "exec"), self.names)

    def _install(self, block: Block) -> None:
        """Make a module of a new file, or add lines to a table of an existing one."""
        path, _, table = block.title.partition(", in ")
        name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if table:
            module = importlib.import_module(name)
            added = eval(f"{{{block.text}}}", {**vars(module), **self.names})
            entries = added if isinstance(added, dict) else {b.name: b for b in added}
            for key, value in entries.items():
                self.patch.setitem(getattr(module, table), key, value)
            return
        assert not (ROOT / path).exists(), f"{path} is there already"
        module = ModuleType(name)
        exec(compile(block.text, path, "exec"), module.__dict__)
        self.patch.setitem(sys.modules, name, module)
        self.names[name.rpartition(".")[2]] = module


@pytest.mark.torch
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] * (p in LONG)) for p in PAGES if blocks(p)]
)
def test_a_page_does_what_it_says(
    page: str, perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(page, perform, monkeypatch)
    for block in blocks(page):
        if not block.why:
            reader.read(block)
    assert [b.why for b in blocks(page) if b.why] == NOT_RUN.get(page, [])


@pytest.mark.parametrize("page", EXAMPLES)
def test_a_worked_example_is_short(page: str) -> None:
    titled = [b for b in blocks(page) if b.title]
    assert titled
    for block in titled:
        assert len([line for line in block.text.splitlines() if line.strip()]) < 30


def test_output_that_differs_is_noticed() -> None:
    assert agrees("a ... c\n", "a  b\nc\n")
    assert not agrees("a ... c\n", "a b d\n")


PLACES = {
    "ANALYSIS": "pairing",
    "BUNDLE": "digits_crelu.crelu",
    "FILE": "network.onnx",
    "FOLDER": "folder",
    "IN.onnx": "network.onnx",
    "MODEL": "digits_crelu.pt",
    "OUT.onnx": "out.onnx",
    "SHELL": "bash",
    "TARGET": "ort-cpu",
}


NOT_TRIED = {
    "package": "needs tritonclient",
    "score": "needs Ray, and data",
    "serve": "needs Triton, and runs until it is stopped",
}
"""Verb -> why its synopsis is not run here; each has a test file of its own."""


def synopses() -> list[str]:
    """Return the commands of the README's table and of the headings of the command line's page."""
    rows = re.findall(r"^\| `(crelu[^`]*)`", PAGES["README.md"].read_text(), re.M)
    rows += re.findall(r"^### `(crelu[^`]*)`", PAGES["docs/reference/cli.md"].read_text(), re.M)
    rows = [row.removesuffix(" ...") for row in rows if " " in row]
    return list(dict.fromkeys(row for row in rows if row.split()[1] not in NOT_TRIED))


SAME = ("crelu deploy MODEL -t TARGET", "crelu-export MODEL")
"""Synopses that differ from another in one option, or in the name of the program."""


@pytest.mark.torch
@mostly("synopsis", synopses(), fast=[line for line in synopses() if line not in SAME])
def test_a_synopsis_runs(synopsis: str, perform: Perform) -> None:
    words = [PLACES.get(word, word) for word in synopsis.split()]
    if words[1] in ("build", "verify", "bench", "report") and words[-1] == words[1]:
        words.append(PLACES["BUNDLE"])
    if words[1] == "report":
        perform(f"crelu bench {words[-1]}", "")
    assert perform(" ".join(words), "")


def verbs(group: click.Group, prefix: str = "crelu") -> dict[str, click.Command]:
    """Return every command and group under its full name."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found[f"{prefix} {name}"] = command
        if isinstance(command, click.Group):
            found |= verbs(command, f"{prefix} {name}")
    return found


with contextlib.redirect_stdout(io.StringIO()):
    run(["--version"])  # which registers the verbs
VERBS = verbs(cli)


def unknown_words(command: str) -> list[str]:
    """Return the verb, or the options, of a command line that do not exist."""
    words = shlex.split(command.replace("crelu-export", "crelu export"), comments=True)
    name = " ".join(words[:2])
    if isinstance(VERBS.get(name), click.Group) and len(words) > 2 and words[2].islower():
        name = " ".join(words[:3])
    if name not in VERBS:
        return [name]
    known = {option for p in VERBS[name].params for option in p.opts} | {"--help", "-h"}
    given = [w.strip("[]").partition("=")[0] for w in words if w.strip("[]").startswith("-")]
    return [word for word in given if word not in known]


def mentioned(text: str) -> list[str]:
    """Return the commands in code spans and in indented lines; alternatives one by one."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    found = re.findall(r"`(crelu(?:-export)? [^`]+)`", prose)
    found += re.findall(r"^ {4}(crelu(?:-export)? .*)$", prose, re.M)
    found = [part.strip() for line in found for part in line.split("&&")]
    return [one for line in found for one in alternatives(line)]


def alternatives(command: str) -> list[str]:
    """Return a command for each of its words that are written ``this|that``."""
    match = re.search(r"\w+(\|\w+)+", command)
    return [command.replace(match[0], word) for word in match[0].split("|")] if match else [command]


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_are_mentioned_exist(page: str) -> None:
    found = mentioned(PAGES[page].read_text(encoding="utf-8"))
    unknown = {command: words for command in found if (words := unknown_words(command))}
    assert unknown == {}


def test_an_unknown_command_is_noticed() -> None:
    assert mentioned("so: `crelu analyze a|b M`") == ["crelu analyze a M", "crelu analyze b M"]
    assert unknown_words("crelu depoly m") == ["crelu depoly"]
    assert unknown_words("crelu verify b --lokate [--json]") == ["--lokate"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_that_exists(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*verb.split()[1:], "--help"]) == 0
    out = capsys.readouterr().out
    (example,) = re.findall(r"Example: (crelu.*|eval .*)", out)
    if example.startswith("crelu"):
        assert unknown_words(example) == []
    assert f"`{verb}" in PAGES["docs/reference/cli.md"].read_text()


def test_make_targets_and_extras_exist() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES.values())
    makefile = (ROOT / "Makefile").read_text()
    wanted = set(re.findall(r"(?:^    |[`>])make (\w[\w-]*)", text, re.M))
    assert {target for target in wanted if f"\n{target}:" not in makefile} == set()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {e for x in re.findall(r"crelu-deploy\[([\w,-]+)\]", text) for e in x.split(",")}
    assert named - extras["optional-dependencies"].keys() == set()


def templates() -> set[str]:
    """Return the texts of the package's sources; a NUL is where a value is put in."""
    found = set()
    for file in (ROOT / "crelu_deploy").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                found.add("".join(map(str, parts)))
    return found


TEMPLATES = templates()


def is_emitted(message: str) -> bool:
    """Return whether a template has the message's parts, in order, between its dots."""
    pattern = re.compile(".*".join(map(re.escape, message.split("…"))), re.S)
    return any(pattern.search(template) for template in TEMPLATES)


MESSAGES = re.findall(r"^### `+ ?(.+?) ?`+$", PAGES["docs/troubleshooting.md"].read_text(), re.M)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_that_the_program_says(message: str) -> None:
    assert is_emitted(message)


def test_a_message_that_nothing_says_is_noticed() -> None:
    assert len(MESSAGES) > 30
    assert not is_emitted("…: no such folder as …")


def slug(heading: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower()))


def anchors(page: Path) -> set[str]:
    return {slug(h) for h in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)}


LINKING = [*PAGES.values(), *(ROOT / n / "README.md" for n in ("examples", "plugins"))]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_public_names_are_in_the_reference() -> None:
    text = "".join(page.read_text() for page in DOCS if page.parent.name == "reference")
    objects = {name: getattr(crelu_deploy, name) for name in crelu_deploy.__all__}
    missing = [n for n, x in objects.items() if f"::: {x.__module__}.{n}\n" not in text]
    assert missing == []
    assert "::: crelu_deploy.nn\n" in text


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'crelu-deploy[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    for name in ("export", "deploy", "Runner", "DeployError"):
        assert re.search(rf'id="crelu_deploy\.\w+\.{name}"', page)
