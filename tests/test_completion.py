"""Shell completion: the scripts are what the shells read, and what they offer is what exists."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crelu_deploy.cli import run
from crelu_deploy.cli.completion import VARIABLE

SHELLS = ("bash", "zsh", "fish")


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["completion", shell]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_reads_its_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert f"{VARIABLE}={shell}_complete" in text
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([program, "-n"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


OFFERS = {
    "verb": ("crelu ver", "plain,verify"),
    "option": ("crelu verify --loc", "plain,--locate"),
    "analysis": ("crelu analyze pa", "plain,pairing"),
    "shell": ("crelu completion z", "plain,zsh"),
    "file": ("crelu export net", "file,net"),
    "nothing": ("crelu export --nonsense", ""),
}


@pytest.mark.parametrize(("words", "offered"), OFFERS.values(), ids=OFFERS)
def test_what_is_offered(
    words: str, offered: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit) as end:
        run([])
    assert end.value.code == 0
    assert capsys.readouterr().out.split() == offered.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way: bash calls the function, the function the program."""
    program = tmp_path / "crelu"
    start = "from crelu_deploy.cli import main; main()"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{start}" "$@"\n')
    program.chmod(0o755)
    asked = "COMP_WORDS=(crelu ins); COMP_CWORD=1; _crelu_completion crelu; echo ${COMPREPLY[@]}"
    done = subprocess.run(
        ["bash", "-c", script("bash", capsys) + asked],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.stdout == "inspect\n", done.stderr


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "tcsh"]) == 2
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in capsys.readouterr().err
