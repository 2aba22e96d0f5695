"""The report in a real browser: no console message, tables that sort, readable at two widths."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from reports import hostile, measured

from crelu_deploy import Options
from crelu_deploy.report import collect
from crelu_deploy.report.content import page
from crelu_deploy.report.html import to_html

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here (apt-get install chromium)"),
]
CONSOLE = re.compile(r":CONSOLE[:(]|Uncaught|Refused to")

SORTING = """
<script>
const table = document.querySelectorAll("table")[1], found = [];
const column = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent === "p90");
const button = table.tHead.rows[0].cells[column].querySelector("button");
for (let press = 0; press < 3; press++) {
  found.push([
    button.parentElement.getAttribute("aria-sort"),
    [...table.tBodies[0].rows].map((row) => Number(row.cells[column].dataset.sort)),
  ]);
  button.focus();
  button.click();
}
const wide = document.documentElement.scrollWidth > innerWidth;
document.title = JSON.stringify({
  found, wide, focus: document.activeElement === button,
  unnamed: [...document.querySelectorAll("button, [role=region], svg[role=img]")]
    .filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label"))).length,
  loads: performance.getEntriesByType("resource").length,
  alerts: typeof alerts === "undefined" ? 0 : alerts,
});
</script></body>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report, and the same with names that try to harm."""
    folder = tmp_path_factory.mktemp("browser")
    data = collect(*measured(folder / "net"), Options(threads=1))
    written = {}
    for name, shown in (("plain", data), ("hostile", hostile(data))):
        written[name] = folder / f"{name}.html"
        written[name].write_text(to_html(page(shown)), encoding="utf-8")
    return written


def chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the browser without a window; what it logs to the console is on stderr."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, timeout=240
    )


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_tables_sort_and_nothing_is_logged(name: str, pages, tmp_path: Path) -> None:
    text = pages[name].read_text(encoding="utf-8")
    copy = tmp_path / "report.html"
    copy.write_text(text.replace("</body>", SORTING), encoding="utf-8")
    done = chromium(tmp_path, "--dump-dom", copy.as_uri())
    assert done.returncode == 0, done.stderr
    assert not CONSOLE.search(done.stderr), done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    said = json.loads(title.group(1).replace("&amp;", "&"))
    (unsorted, values), (up, rising), (down, falling) = said["found"]
    assert (unsorted, up, down) == (None, "ascending", "descending")
    assert len(set(values)) > 2
    assert rising == sorted(values)
    assert falling == sorted(values, reverse=True)
    assert (said["wide"], said["focus"], said["unnamed"], said["loads"]) == (False, True, 0, 0)


def test_the_console_is_listened_to(tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text("<script>missing()</script>")
    done = chromium(tmp_path, "--dump-dom", (tmp_path / "bad.html").as_uri())
    assert CONSOLE.search(done.stderr)


@pytest.mark.parametrize("width", [1280, 400])
def test_a_picture(width: int, pages, tmp_path: Path) -> None:
    frame = tmp_path / "frame.html"  # a window itself cannot be made as narrow as a telephone
    frame.write_text(
        f'<body style="margin:0"><iframe src="{pages["plain"].as_uri()}" '
        f'style="width:{width}px;height:1500px;border:0"></iframe>'
    )
    picture = tmp_path / "page.png"
    size = f"--window-size={max(width, 500)},1500"
    done = chromium(tmp_path, size, f"--screenshot={picture}", frame.as_uri())
    assert picture.is_file(), done.stderr
    assert struct.unpack(">II", picture.read_bytes()[16:24]) == (max(width, 500), 1500)
    assert picture.stat().st_size > 30_000  # an empty page of this size takes a tenth of that


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_sticks_out(width: int, pages, tmp_path: Path) -> None:
    page_ = tmp_path / "page.html"
    text = pages["plain"].read_text(encoding="utf-8").replace("</body>", SORTING)
    page_.write_text(text.replace("document.title =", "top.document.title ="), encoding="utf-8")
    frame = tmp_path / "frame.html"
    style = f"width:{width}px;height:900px"
    frame.write_text(f'<title>-</title><iframe src="{page_.as_uri()}" style="{style}">')
    done = chromium(tmp_path, "--allow-file-access-from-files", "--dump-dom", frame.as_uri())
    said = json.loads(re.search(r"<title>(.*?)</title>", done.stdout).group(1))
    assert said["wide"] is False
