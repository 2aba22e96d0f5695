"""Plant bugs of one line, one at a time; the tests that `make test` runs must notice each.

Usage: mutants.py [--only NAME]... [--all-tests]

Each bug is planted in a copy of the package in a temporary folder, and the test files that should
notice it run there until one test fails. A bug whose old text is not found exactly once is an
error. Prints the bugs that no test noticed, then "N of N caught". Exit status 1: some were not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTICED, PASSED = 1, 0
"""Exit codes of pytest: some test failed, all passed; any other is an error of the run."""


@dataclass(frozen=True)
class Mutant:
    """One bug.

    Attributes:
        file: Where it is planted, below the package.
        old: The text that is replaced, found there exactly once.
        new: The bug.
        tests: The test files to run, without ``test_`` and suffix, the likeliest first.
    """

    file: str
    old: str
    new: str
    tests: str

    @property
    def name(self) -> str:
        """Return where it is and what it is, in one line."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}: {old!r} -> {new!r}"


FOLD = "fold fold_refusals lowerings"
RECOGNITION = "recognition_parts recognition spellings"
MUTANTS = (
    # -- recognition
    Mutant(
        "recognition/axes.py",
        "return axis + rank if axis < 0 and",
        "return axis + rank - 1 if axis < 0 and",
        RECOGNITION,
    ),
    Mutant(
        "recognition/axes.py",
        "return Layout(2, 1, extent(0 if transposed else 1, inputs[1]))",
        "return Layout(2, 1, extent(1 if transposed else 0, inputs[1]))",
        RECOGNITION,
    ),
    Mutant(
        "recognition/axes.py",
        "None if per_group is None else group * per_group",
        "per_group",
        RECOGNITION,
    ),
    Mutant(
        "recognition/axes.py",
        "order.index(normalized(axis, len(order)))",
        "order[normalized(axis, len(order))]",
        RECOGNITION,
    ),
    Mutant(
        "recognition/constants.py",
        "rows = np.moveaxis(padded, self.axis, 0)",
        "rows = np.moveaxis(padded, 0, self.axis)",
        RECOGNITION,
    ),
    Mutant(
        "recognition/constants.py",
        "if (rows != rows[:, :1]).any():",
        "if (rows != rows[:1, :]).all():",
        RECOGNITION,
    ),
    Mutant(
        "recognition/fit.py",
        'if name == "clip" and not attributes["min"] < attributes["max"]:',
        'if name == "clip" and not attributes["min"] <= attributes["max"]:',
        RECOGNITION,
    ),
    Mutant(
        "recognition/fit.py",
        "Piece(self.scale * scale, self.shift * scale + shift, base=base)",
        "Piece(self.scale * scale, self.shift + shift, base=base)",
        RECOGNITION,
    ),
    Mutant(
        "recognition/fit.py",
        "if not np.array_equal(samples,",
        "if not np.allclose(samples,",
        RECOGNITION,
    ),
    Mutant(
        "recognition/halves.py",
        "scale = _joined(first.scale, -second.scale, channels)",
        "scale = _joined(first.scale, second.scale, channels)",
        RECOGNITION,
    ),
    Mutant(
        "recognition/halves.py",
        "if (first.scale == sign).all() and (second.scale == -sign).all():",
        "if (first.scale == sign).all() or (second.scale == -sign).all():",
        RECOGNITION,
    ),
    Mutant(
        "recognition/halves.py",
        "(vector[0::2], vector[1::2]) if interleaved",
        "(vector[1::2], vector[0::2]) if interleaved",
        RECOGNITION,
    ),
    Mutant(
        "recognition/joins.py",
        "((stack.axis - 1, True), (stack.axis, False))",
        "((stack.axis - 1, False), (stack.axis, True))",
        RECOGNITION,
    ),
    Mutant(
        "recognition/probe.py",
        "return np.asarray((x - mean) / deviation * scale + shift)",
        "return np.asarray((x + mean) / deviation * scale + shift)",
        RECOGNITION,
    ),
    Mutant(
        "recognition/structure.py",
        'node.attributes.get_int("training_mode", 0) == 0 and len(node.inputs) == 5',
        "len(node.inputs) == 5",
        RECOGNITION,
    ),
    Mutant(
        "recognition/structure.py",
        "return training is None or (flag is not None and not flag.any())",
        "return True",
        RECOGNITION,
    ),
    Mutant(
        "recognition/rewrite.py",
        "order = np.arange(2 * site.channels).reshape(2, -1).T.reshape(-1)",
        "order = np.arange(2 * site.channels).reshape(-1, 2).T.reshape(-1)",
        RECOGNITION,
    ),
    Mutant(
        "recognition/sites.py",
        "if axis == 0 and layout.rank != 1:",
        "if axis == 0 and layout.rank == 1:",
        RECOGNITION,
    ),
    # -- lowerings
    Mutant(
        "lowerings/fold.py",
        "bias = None if weights.bias is None else doubled(weights.bias, order, -1, signed=True)",
        "bias = None if weights.bias is None else doubled(weights.bias, order, -1, signed=False)",
        FOLD,
    ),
    Mutant(
        "lowerings/fold.py",
        "if sum(dropped[i + 1 :]) % 2 else",
        "if sum(dropped[: i + 1]) % 2 else",
        FOLD,
    ),
    Mutant(
        "lowerings/fold.py",
        "if groups_of(chain.producer) == chain.channels:",
        "if groups_of(chain.producer) > chain.channels:",
        FOLD,
    ),
    Mutant(
        "lowerings/fold.py", "dims[spot.axis] = 2 * spot.extent", "dims[0] = 2 * spot.extent", FOLD
    ),
    Mutant(
        "lowerings/orders.py",
        "return (order + len(order) // 2) % len(order)",
        "return order",
        FOLD,
    ),
    Mutant(
        "lowerings/orders.py",
        "return natural(channels).reshape(2, groups, -1).swapaxes(0, 1).ravel()",
        "return natural(channels).reshape(groups, 2, -1).swapaxes(0, 1).ravel()",
        FOLD,
    ),
    Mutant(
        "lowerings/steps.py",
        '"BatchNormalization": Step(_batch_norm, {1: False, 2: True, 3: True, 4: False}),',
        '"BatchNormalization": Step(_batch_norm, {1: False, 2: True, 3: False, 4: False}),',
        FOLD,
    ),
    Mutant(
        "lowerings/steps.py",
        'get_string("mode", "constant") == "constant" and any(value)',
        'get_string("mode", "constant") == "edge" and any(value)',
        f"{FOLD} complement_refusals",
    ),
    Mutant(
        "lowerings/absorb.py",
        "return scale, beta - mean * scale",
        "return scale, beta - mean",
        "passes fold",
    ),
    Mutant(
        "lowerings/absorb.py",
        "scale, shift = scale * values[0], shift * values[0] + values[1]",
        "scale, shift = scale * values[0], shift + values[1]",
        "passes fold",
    ),
    Mutant(
        "lowerings/producers.py",
        "bias = weights.bias.astype(np.float64) * beta * scale + shift",
        "bias = weights.bias.astype(np.float64) * scale + shift",
        "passes fold",
    ),
    Mutant(
        "lowerings/complement.py",
        "columns = np.concatenate([-negative, positive + negative])",
        "columns = np.concatenate([negative, positive + negative])",
        "complement split",
    ),
    Mutant(
        "lowerings/pooled.py",
        'if set(node.attributes.get_ints("dilations", ())) - {1}:',
        'if set(node.attributes.get_ints("dilations", ())) - {1, 2}:',
        "pooled complement_refusals",
    ),
    Mutant(
        "lowerings/consumers.py",
        "return Part(spot, sum(known[:index]) + part.start, part.extent)",
        "return Part(spot, sum(known[:index]), part.extent)",
        "complement split complement_refusals",
    ),
    Mutant(
        "lowerings/consumers.py",
        "if groups_of(node) != 1:",
        "if groups_of(node) > 2:",
        "complement_refusals complement split",
    ),
    Mutant(
        "lowerings/depthwise.py",
        "return (scale[0], shift[0]), (-scale[1], shift[1])",
        "return (scale[0], shift[0]), (-scale[1], -shift[1])",
        "depthwise lowerings",
    ),
    Mutant(
        "lowerings/split.py",
        "([], bias), strict=True",
        "(bias, bias), strict=True",
        "split lowerings",
    ),
    Mutant(
        "lowerings/concats.py",
        "return producer if same and _axis(producer) == _axis(node) else None",
        "return producer if same else None",
        "concats passes lowerings",
    ),
    # -- accuracy
    Mutant("accuracy.py", "return self.score <= 1", "return self.score < 1.1", "accuracy"),
    Mutant(
        "accuracy.py",
        "lost = ~same & ~(np.isfinite(a) & np.isfinite(e))",
        "lost = ~same & ~(np.isfinite(a) | np.isfinite(e))",
        "accuracy pipeline",
    ),
    Mutant(
        "accuracy.py",
        "if actual.shape != expected.shape or actual.dtype != expected.dtype:",
        "if actual.shape != expected.shape:",
        "accuracy",
    ),
    Mutant(
        "accuracy.py",
        "return Comparison(worst.score, max(c.max_abs for c in found), worst.worst)",
        "return Comparison(worst.score, worst.max_abs, worst.worst)",
        "accuracy",
    ),
    # -- plans, bundles, manifests, staging
    Mutant(
        "plan.py",
        'if self.key.get("model") not in (None, model_hash):',
        'if self.key.get("model") not in (None, self.key.get("model"), model_hash):',
        "planner hostile",
    ),
    Mutant(
        "plan.py",
        "if lowering not in LOWERINGS and lowering not in NATIVE:",
        "if lowering not in LOWERINGS and lowering in NATIVE:",
        "planner hostile",
    ),
    Mutant(
        "bundle.py",
        "if hash_ != recorded[name]:",
        "if len(hash_) != len(recorded[name]):",
        "bundle interrupted",
    ),
    Mutant(
        "bundle.py",
        "if read_manifest(self.path) != self.manifest:",
        "if read_manifest(self.path) == self.manifest:",
        "interrupted bundle",
    ),
    Mutant(
        "manifest.py",
        'if Path(name).is_absolute() or ".." in Path(name).parts:',
        'if Path(name).is_absolute() or name.startswith(".."):',
        "bundle hostile",
    ),
    Mutant("manifest.py", "known = version <= FORMAT", "known = version <= FORMAT + 1", "bundle"),
    Mutant(
        "staging.py",
        "key=lambda file: file == temporary",
        "key=lambda file: file != temporary",
        "bundle interrupted",
    ),
    Mutant(
        "staging.py",
        "match[1] == place[:_KEPT]",
        "match[1] == place",
        "interrupted bundle",
    ),
    # -- how a form is chosen
    Mutant("latency.py", "return self.high < 1", "return self.ratio < 1", "latency search"),
    Mutant("latency.py", "(1 - CONFIDENCE) / 2", "(1 - CONFIDENCE) * 2", "latency"),
    Mutant("latency.py", "list(calls)[:: -1 if number % 2 else 1]", "list(calls)", "latency"),
    Mutant(
        "racing.py",
        "all(lane.high <= 1 + MARGIN for lane in self.lanes)",
        "any(lane.high <= 1 + MARGIN for lane in self.lanes)",
        "search",
    ),
    Mutant("racing.py", "        yield from kept\n", "", "search"),
    Mutant("racing.py", "        self.spent += used\n", "", "search"),
    Mutant(
        "search.py",
        "winners = [name for name in finalists if last[name].wins]",
        "winners = finalists",
        "search",
    ),
    Mutant(
        "search.py",
        "return others[name] if second[name].wins else None",
        "return others[name]",
        "search",
    ),
    Mutant(
        "rule.py",
        "return terms * (after - before) / before",
        "return terms * after / before",
        "rule calibration",
    ),
    Mutant(
        "rule.py",
        "channels is not None and channels % self.block == 0",
        "channels is not None and channels % self.block != 1",
        "rule",
    ),
    Mutant(
        "optimizer.py",
        "lower(model, PLAIN) if pruned else Lowered(read_model(source), {}, {})",
        "lower(model, PLAIN)",
        "races optimizer",
    ),
    Mutant("accuracy.py", "if peak >= broad:", "if peak >= 0:", "rounding"),
    Mutant(
        "rounding.py",
        "capped = np.minimum(error, 10 * np.median(seen))",
        "capped = error",
        "rounding",
    ),
    Mutant(
        "exciting.py",
        "both = [x.amax(rest), (-x).amax(rest)]",
        "both = [x.amax(rest), x.amax(rest)]",
        "exciting",
    ),
    Mutant(
        "seeking.py",
        "np.stack([x.max(2), -x.min(2)], 1)",
        "np.stack([x.max(2), x.max(2)], 1)",
        "comparing",
    ),
    Mutant(
        "comparing.py",
        "max(extent, ROWS)",
        "extent",
        "comparing",
    ),
    Mutant(
        "extents.py",
        "found += [*larger[:1], *smaller[:1], *wrong[-1:]]",
        "found += [*smaller[:1]]",
        "settling",
    ),
    Mutant(
        "settling.py",
        "if differs := both.distance(s):",
        'if differs := "":',
        "settling",
    ),
)


def plant(mutant: Mutant, folder: Path) -> Path:
    """Write the file with the bug into a copy of the package; return the file.

    Raises:
        ValueError: The old text is not there exactly once.
    """
    path = folder / "crelu_deploy" / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: the old text is there {text.count(mutant.old)} times")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    return path


def check_table(folder: Path) -> None:
    """Plant and take back every bug, so that a table out of date is told at once."""
    for mutant in MUTANTS:
        original = (folder / "crelu_deploy" / mutant.file).read_text(encoding="utf-8")
        plant(mutant, folder).write_text(original, encoding="utf-8")


def caught(mutant: Mutant, folder: Path, everything: bool) -> str | None:
    """Return the first test that notices the bug, None if none does.

    Raises:
        RuntimeError: The tests could not be run.
    """
    original = (folder / "crelu_deploy" / mutant.file).read_text(encoding="utf-8")
    path = plant(mutant, folder)
    try:
        for name in mutant.tests.split():
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "--tb=no"]
            command += ["-p", "no:cacheprovider", f"tests/test_{name}.py"]
            command += ["-m", ""] if everything else []
            done = subprocess.run(
                command, cwd=folder, env=environment(folder), capture_output=True, text=True
            )
            if done.returncode == NOTICED:
                failed = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR"))]
                return (failed or ["a test"])[0].split(" - ")[0]
            if done.returncode == 2 and "ERROR" in done.stdout:
                return f"ERROR collecting tests/test_{name}.py"
            if done.returncode != PASSED:
                raise RuntimeError(done.stdout + done.stderr)
    finally:
        path.write_text(original, encoding="utf-8")
    return None


def environment(folder: Path) -> dict[str, str]:
    """Return the environment in which the copy is what Python imports; no stale bytecode."""
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def copy_of_tree(folder: Path) -> None:
    """Copy what the tests need."""
    skipped = shutil.ignore_patterns("__pycache__", ".git", ".venv", "build", "site", "out")
    for name in ("crelu_deploy", "tests", "examples", "scripts", "docs", "plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=skipped, symlinks=True)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, folder)


def main() -> int:
    """Plant every bug and print what was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="a part of a bug's name; may be repeated")
    parser.add_argument("--all-tests", action="store_true", help="as `make test-all` runs them")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.only or any(o in m.name for o in options.only)]
    missed = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        copy_of_tree(folder)
        check_table(folder)
        for mutant in chosen:
            test = caught(mutant, folder, options.all_tests)
            missed += test is None
            print(f"{test or 'NOT CAUGHT':60} {mutant.name}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
