"""A report says what was measured, in three files that belong to the bundle, and escapes names."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reports import HOSTILE, TARGETS, hostile, measured

from crelu_deploy import Bundle, Options, build
from crelu_deploy.bundle import REPORTS, check_destination, contents
from crelu_deploy.cli import run
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.report import collect, read_report, save_report, write_report
from crelu_deploy.report.content import page
from crelu_deploy.report.html import to_html
from crelu_deploy.report.markdown import plain, to_markdown
from crelu_deploy.report.parts import Cell, Page, Range, Ranges, Section, Table
from crelu_deploy.report.plots import decades, ranges, rounded

ONE = Options(threads=1)
VOID = {"meta", "link", "br", "img"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A bundle with its report, and what is in it; to be read only."""
    bundle, benchmark = measured(tmp_path_factory.mktemp("report") / "net")
    write_report(bundle, benchmark, threads=1)
    return bundle.path, collect(bundle, benchmark, ONE)


@pytest.fixture
def reported(shared, tmp_path: Path) -> Path:
    """A copy of the bundle that the test may change."""
    return Path(shutil.copytree(shared[0], tmp_path / "net"))


class Outline(HTMLParser):
    """The elements of a page, with a check that every one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]


def test_the_files_belong_to_the_bundle(reported: Path) -> None:
    assert set(REPORTS) <= contents(reported)
    Bundle.open(reported)
    check_destination(reported)
    (reported / "report.md").write_text("changed")
    with pytest.raises(UnsupportedModel, match=r"report\.md: changed since it was written"):
        Bundle.open(reported)


def test_a_report_that_no_manifest_knows_yet_is_the_bundles(reported: Path) -> None:
    manifest = json.loads((reported / "manifest.json").read_text())
    for name in REPORTS:
        del manifest["files"][name]
    (reported / "manifest.json").write_text(json.dumps(manifest))
    check_destination(reported)
    assert read_report(Bundle.open(reported)) is None


def test_what_the_data_say(shared) -> None:
    _, data = shared
    by_target = {target["target"]: target for target in data["targets"]}
    assert list(by_target) == [*TARGETS[:3], "ort-cpu:auto"]
    assert all(target["passed"] for target in data["targets"])
    for name, target in by_target.items():
        assert [output["output"] for output in target["outputs"]] == ["y"]
        (site,) = target["sites"]
        assert (site["site"], site["passed"]) == ("site", True)
        assert site["lowering"] == name.split(":")[1] or name == "ort-cpu:auto"
        assert target["bytes"] > 100
    assert by_target["ort-cpu:primitive"]["operators"] == {
        "Concat": 1,
        "Conv": 1,
        "Neg": 1,
        "Relu": 2,
    }
    assert by_target["ort-cpu:fold"]["operators"] == {"Conv": 1, "Relu": 1}
    assert {row["batch"] for row in data["bench"]["rows"]} == {1, 4}
    assert json.loads(json.dumps(data)) == data


def test_decisions_and_images_are_told_where_they_are_known(shared) -> None:
    _, data = shared
    first = {**data["targets"][0], "agreement": {"output": "y", "equal": 7, "rows": 9}}
    told = {**data, "targets": [first, *data["targets"][1:]], "images": "(pixel - 0) / 255"}
    rows = [line for line in to_markdown(page(told)).splitlines() if line.startswith("| `ort-cpu")]
    assert " 7/9 " in rows[0]
    assert " - " in rows[1]
    assert "| images become |" in to_markdown(page(told))
    assert data["images"] is None
    assert "images become" not in to_markdown(page(data))


def test_what_cannot_run_here_is_no_failure(shared) -> None:
    _, data = shared
    told = {"passed": False, "skipped": True, "worst": "built, not run: no GPU", "score": None}
    first = {**data["targets"][0], **told, "max_abs": None}
    one = page({**data, "targets": [first, *data["targets"][1:]]})
    assert one.passed
    assert one.verdict == "All 3 targets agree with PyTorch; not here: ort-cpu:primitive"
    assert "| not here |" in to_markdown(one)
    assert "FAILED" not in to_markdown(one)
    other = {**data["targets"][1], "passed": False}
    both = page({**data, "targets": [first, other, *data["targets"][2:]]})
    assert not both.passed
    assert both.verdict.startswith("1 of 3 targets failed: ")


def test_what_is_read_is_what_was_written(reported: Path) -> None:
    bundle = Bundle.open(reported)
    data = read_report(bundle)
    before = (reported / "report.html").read_bytes()
    save_report(bundle, data)
    assert read_report(Bundle.open(reported)) == data
    assert (reported / "report.html").read_bytes() == before


DAMAGED = {
    "no-json": ("{", "damaged"),
    "no-format": ("{}", "damaged"),
    "list": ("[1]", "damaged"),
    "newer": ('{"format": 99}', "format 99 is not 1"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_report(name: str, reported: Path) -> None:
    text, message = DAMAGED[name]
    bundle = Bundle.open(reported)
    bundle.replace_text(REPORTS[0], text)
    with pytest.raises(UnsupportedModel, match=rf"report\.json: {message}.*run: crelu bench"):
        read_report(Bundle.open(reported))


def test_the_page_is_well_formed_and_accessible(shared) -> None:
    text = (shared[0] / "report.html").read_text()
    outline = Outline(text)
    assert outline.all("html") == [{"lang": "en"}]
    tables, regions = outline.all("table"), [d for d in outline.all("div") if "role" in d]
    assert len(tables) == len(outline.all("caption")) == len(regions) >= 8
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)
    assert {head.get("scope") for head in outline.all("th")} == {"col", "row"}
    pictures = [svg for svg in outline.all("svg") if "aria-hidden" not in svg]
    assert pictures
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in pictures)
    ids = [a["id"] for _, a in outline.seen if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in outline.all("a")} <= set(ids)
    for section in ("Targets", "Latency", "CReLU sites", "Errors", "Environment", "Commands"):
        assert section in outline.words
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_the_page_asks_for_nothing(shared) -> None:
    text = (shared[0] / "report.html").read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp", text)
    outline = Outline(text)
    sources = [v for _, a in outline.seen for k, v in a.items() if k in ("src", "href", "action")]
    assert all(v.startswith("#") or v == "data:," for v in sources)


def test_names_are_escaped_everywhere(shared) -> None:
    data = hostile(shared[1])
    html, markdown = to_html(page(data)), to_markdown(page(data))
    outline = Outline(html)
    assert not outline.all("img")
    assert len(outline.all("script")) == 1
    shown = repr(HOSTILE)[1:-1].replace("\\'", "'")
    assert any(shown in words for words in outline.words)
    assert not re.search(r"(?<!\\)[<`\[]", re.sub(r"`[\w.:,/ +=@-]+`", "", markdown))
    assert "\x1b" not in html + markdown
    assert all(ord(c) >= 32 or c == "\n" for c in html + markdown)
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all(re.search(r"(?<!\\)\|$", row) for row in rows)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a|b", r"a\|b"),
        ("<b>", r"\<b\>"),
        ("a`b`", r"a\`b\`"),
        ("[x](y)", r"\[x\]\(y\)"),
        ("a\nb", r"a\\nb"),
        ("1.5 ms", "1.5 ms"),
    ],
)
def test_plain_markdown(raw: str, expected: str) -> None:
    assert plain(raw) == expected


def test_a_failure_comes_first(shared) -> None:
    _, data = shared
    failed = {**data["targets"][1], "passed": False, "score": None}
    failed["sites"] = [{**site, "passed": False, "score": 3.0} for site in failed["sites"]]
    shown = page({**data, "targets": [data["targets"][0], failed]})
    assert not shown.passed
    assert shown.verdict == "1 of 2 targets failed: ort-cpu:mirror"
    text = to_html(shown)
    assert '<p class="verdict bad" id="verdict">1 of 2 targets failed' in text
    assert "Beyond tolerance" in text
    assert "**FAILED**" in to_markdown(shown)


def test_nothing_timed(shared) -> None:
    _, data = shared
    bench = {**data["bench"], "rows": [], "not_timed": {"ort-cpu:fold": "a reason"}}
    markdown = to_markdown(page({**data, "bench": bench}))
    assert "Nothing was timed; run: crelu bench" in markdown
    assert "a reason" in markdown


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 1), (0.7, 0.7), (0.71, 1), (1.2, 1.5), (99, 100), (301, 500), (float("nan"), 1)],
)
def test_the_end_of_an_axis(value: float, expected: float) -> None:
    assert rounded(value) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.3, 4], [0.2, 0.5, 1, 2, 5]),
        ([1, 1], [1, 2]),
        ([], [1, 2]),
        ([60, 900], [50, 100, 200, 500, 1000]),
    ],
)
def test_ticks(values: list[float], expected: list[float]) -> None:
    assert decades(values) == pytest.approx(expected)


def test_a_range_is_where_its_figures_are() -> None:
    drawn = ranges(Ranges("c", (Range("a<b", 2.0, 3.0, 8.0), Range("b", 1.0, 1.0, 10.0))))
    assert 'x="20.00" y="2" width="60.00"' in drawn
    assert 'x="29.75"' in drawn
    assert "a&lt;b: 3.00 ms, 10th to 90th percentile 2.00 to 8.00 ms" in drawn


def test_numbers_sort_as_numbers() -> None:
    table = Table("t", ("n", "x>"), ((Cell("a"), Cell("10.0", 10.0)), (Cell("b"), Cell("9", 9.0))))
    text = to_html(Page("p", True, "v", (), (Section("S", (table,)),)))
    assert '<td class="number" data-sort="10.0">10.0</td>' in text


def test_the_command_line(reported: Path, monkeypatch, capsys) -> None:
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert run(["report", str(reported), "--open"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["report", str(reported / n)] for n in REPORTS]
    assert opened == [(reported / "report.html").as_uri()]
    assert run(["report", str(reported), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["format"] == 1


def test_bench_writes_it_and_a_bundle_without_one_says_how(reported: Path, capsys) -> None:
    bundle = Bundle.open(reported)
    files = {n: h for n, h in bundle.manifest["files"].items() if n not in REPORTS}
    bundle.manifest["files"] = files
    bundle.record(())
    for name in REPORTS:
        (reported / name).unlink()
    assert run(["report", str(reported)]) == 1
    assert "nothing was measured; run: crelu bench" in capsys.readouterr().err
    quick = ["--runs", "5", "--seconds", "1", "--threads", "1", "-q"]
    assert run(["bench", str(reported), "-t", "ort-cpu:mirror", *quick]) == 0
    assert f"report   {reported / 'report.html'}" in capsys.readouterr().out
    data = read_report(Bundle.open(reported))
    assert [target["target"] for target in data["targets"]] == list(TARGETS[:2])


def test_an_older_target_is_built_again_beside_the_report(reported: Path) -> None:
    (done,) = build(reported, ["ort-cpu:mirror"], ONE)
    assert done.error == ""
    assert read_report(Bundle.open(reported)) is not None
