"""Mutation testing: mistakes put into the code one at a time, each of which the tests must notice.

    python -m tests.harness.mutants [AREA ...] [--share 0.2] [--processes 2] [--survivors FILE] [--results FILE]

mutmut makes mistakes in Python functions. Those in C, and in Python that mutmut leaves alone (constants, declarations,
functions that run at import), are the edits of `mutants.toml`. Both are applied to a copy of the checkout, and the fast
tests of their area run. Prints a table in Markdown. A mutant counts as killed when a test fails, hangs or crashes.

Not mutated: docstrings, type annotations, lines that raise an error or warn, `strict=True` in loops, which changes
nothing as long as there is no mistake, and lm/recurrence/cuda.py, which needs a GPU.
"""

import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.commands import ROOT

AREAS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
MUTMUT = ("-c", "from mutmut.__main__ import cli; cli()")
NOT_MUTATED = ("lm/recurrence/cuda.py",)
IGNORED_LINES = (r"^\s*raise ", r"^\s*except ", r"^\s*warn_once\(", r"^\s*warnings\.warn\(", r"\bcast\(")
REWRITTEN = ("no_grad", "inference_mode", "property", "custom_op")
"""Decorators that are written as calls before mutation, as mutmut leaves decorated functions alone."""
ALIVE = ("survived", "no tests")


class Result(NamedTuple):
    """What became of a mutant; `difference` of those that survived."""

    module: str
    name: str
    status: str
    difference: str = ""


def simplify(source: str) -> str:
    """Replace `@decorator def f` by `def f` and `f = decorator(f)`, as REWRITTEN says, and leave out `strict=True`."""
    lines = [re.sub(r"( in (reversed\(list\()?zip\(.*), strict=True\)", r"\1)", line) for line in source.splitlines()]
    functions = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.FunctionDef)]
    for node in sorted(functions, key=lambda node: -node.end_lineno):
        texts = [ast.unparse(decorator) for decorator in node.decorator_list]
        if len(texts) == 1 and re.split(r"[.(]", texts[0].split("(")[0])[-1] in REWRITTEN:
            lines.insert(node.end_lineno, f"{' ' * node.col_offset}{node.name} = {texts[0]}({node.name})")
            del lines[node.decorator_list[0].lineno - 1 : node.decorator_list[0].end_lineno]
    return "\n".join(lines) + "\n"


class Copy:
    """A copy of the checkout's files in a folder, in which an area is mutated."""

    def __init__(self, folder: Path, area: str) -> None:
        self.folder, self.area = folder, area
        words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        for name in filter(lambda name: (ROOT / name).is_file(), names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        without = f"not ({AREAS[area]['without']})" if "without" in AREAS[area] else ""
        # pytest's look for unraisable exceptions takes longer than all else that a mutant needs.
        options = f"-m|not slow|-k|{without}|--tb=no|-p|no:cacheprovider|-p|no:unraisableexception"
        self.options = options.split("|")
        self.tests, self.at_import = AREAS[area]["tests"], AREAS[area].get("at_import", [])

    def python(self, *words: str, mutant: str = "", **options) -> subprocess.CompletedProcess:
        """Run Python in the folder, or where mutmut has put `mutant`, apart from the user's compiled files."""
        folder = self.folder / "mutants" if mutant else self.folder
        variables = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MUTANT_UNDER_TEST": mutant}
        variables = os.environ | variables | {"XDG_CACHE_HOME": str(self.folder / ".cache")}
        return subprocess.run([sys.executable, *words], cwd=folder, env=variables, text=True, **options)

    def run_tests(self, *first: str, mutant: str = "") -> str:
        """The outcome of the area's tests up to the first failure, those of the files `first` before others."""
        words = ["-m", "pytest", "-q", "-x", *self.options, *(name for name in first if (self.folder / name).exists())]
        try:
            code = self.python(*words, *self.tests, mutant=mutant, capture_output=True, timeout=900).returncode
        except subprocess.TimeoutExpired:
            return "timeout"
        return {0: "survived", 1: "killed"}.get(code, f"exit code {code}")

    def apply_edits(self) -> list[Result]:
        """Apply each edit of the area alone, and run the tests."""
        edits, results = AREAS[self.area].get("edits", []), []
        if edits and (outcome := self.run_tests()) != "survived":
            raise SystemExit(f"{self.area}: the tests must pass without a mistake: {outcome}")
        for edit in edits:
            path = self.folder / edit["file"]
            original = path.read_text()
            assert original.count(edit["old"]) == 1, f"{edit['file']} must have this once: {edit['old']}"
            path.write_text(original.replace(edit["old"], edit["new"]))
            outcome = self.run_tests(f"tests/{path.parent.name}/test_{path.stem}.py")
            results.append(Result(edit["file"], "edit", outcome, f"-{edit['old']}\n+{edit['new']}"))
            path.write_text(original)
            print(f"{edit['file']}: {outcome}: {' '.join(edit['old'].split())} -> {edit['new']}", flush=True)
        return results

    def run_mutmut(self, share: float, processes: int) -> list[Result]:
        """Let mutmut mutate the area's Python modules."""
        found = [path for pattern in AREAS[self.area]["modules"] for path in sorted(self.folder.glob(pattern))]
        modules = [name for path in found if (name := str(path.relative_to(self.folder))) not in NOT_MUTATED]
        for name in modules:
            (self.folder / name).write_text(simplify((self.folder / name).read_text()))
        kept = ("lm", "tests", ".cache", ".git")
        settings = {
            "source_paths": ["lm"],
            "only_mutate": modules,
            "also_copy": [path.name for path in self.folder.iterdir() if path.name not in kept],
            "do_not_mutate_patterns": IGNORED_LINES,
            "pytest_add_cli_args": self.options,
            "pytest_add_cli_args_test_selection": self.tests,
            "process_isolation": "forkserver",  # a process in which torch has computed cannot be forked
            "use_git_change_detection": False,
        }
        with (self.folder / "pyproject.toml").open("a") as file:
            file.write(
                "\n[tool.mutmut]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
            )
        digits = random.Random(0).sample(range(10), max(1, round(10 * share))) if share < 1 else []
        words = ["run", "--max-children", str(processes), *(f"*{digit}" for digit in digits)]
        log = self.folder / "mutmut.log"
        with log.open("w") as file:
            done = self.python(*MUTMUT, *words, stdout=file, stderr=subprocess.STDOUT)
        if done.returncode:
            raise SystemExit(f"{self.area}: {log.read_text().rstrip().splitlines()[-1]}; do its tests pass?")
        return [result for name in modules for result in self.read_results(name)]

    def read_results(self, module: str) -> list[Result]:
        """What mutmut says of each mutant of a module that it tried."""
        from mutmut.stats import status_by_exit_code

        meta = self.folder / "mutants" / f"{module}.meta"
        codes = json.loads(meta.read_text())["exit_code_by_key"] if meta.exists() else {}
        statuses = {name: status_by_exit_code[code] for name, code in codes.items() if code is not None}
        results = []
        for name, status in statuses.items():
            if status in ALIVE and any(f"x_{function}__mutmut" in name for function in self.at_import):
                status = self.run_tests(mutant=name.replace("__init__.", ""))  # mutmut's processes have imported it
            shown = self.python(*MUTMUT, "show", name, capture_output=True).stdout if status in ALIVE else ""
            changed = [line for line in shown.splitlines() if re.match(r"[-+](?![-+]{2} )", line)]
            results.append(Result(module, name.rpartition(".")[2], status, "\n".join(changed)))
        return results


def print_table(results: list[Result]) -> None:
    """Print the number of mutants by module, and in how many of them the tests did not fail in the ordinary way."""
    print("| module | mutants | killed | survived | share killed |\n|---|---|---|---|---|")
    for module in [*sorted({result.module for result in results}), "all"]:
        alive = Counter(result.status in ALIVE for result in results if module in (result.module, "all"))
        share = alive[False] / alive.total()
        print(f"| {module} | {alive.total():,} | {alive[False]:,} | {alive[True]} | {share:.1%} |")
    rare = Counter(result.status for result in results if result.status not in ("killed", *ALIVE))
    print(
        "\nOf the killed: " + (", ".join(f"{count} {status}" for status, count in rare.items()) or "all by a failure")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"of {', '.join(AREAS)}; all by default")
    parser.add_argument("--share", type=float, default=1.0, help="share of mutmut's mutants, taken by their numbers")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--survivors", type=Path, help="file for the mistakes that no test noticed")
    parser.add_argument("--only", choices=("edits", "mutmut"))
    parser.add_argument("--results", type=Path, help="keeps the results of each area, which is not run again")
    options = parser.parse_args()
    known: dict[str, list[Result]] = {}
    if options.results and options.results.exists():
        lines = map(json.loads, options.results.read_text().splitlines())
        same = (line for line in lines if (line["share"], line["only"]) == (options.share, options.only))
        known = {line["area"]: [Result(*result) for result in line["results"]] for line in same}
    areas = options.areas or list(AREAS)
    for area in areas:
        if area in known:
            continue
        with tempfile.TemporaryDirectory(prefix="mutants-") as name:
            copy, found = Copy(Path(name), area), []
            found += copy.apply_edits() if options.only != "mutmut" else []
            found += copy.run_mutmut(options.share, options.processes) if options.only != "edits" else []
        known[area] = found
        if options.results:
            with options.results.open("a") as file:
                line = {"area": area, "share": options.share, "only": options.only, "results": found}
                file.write(json.dumps(line) + "\n")
    results = [result for area in areas for result in known[area]]
    if options.survivors:
        alive = (result for result in results if result.status in ALIVE)
        texts = (f"## {module}, {name}: {status}\n\n```diff\n{text}\n```\n" for module, name, status, text in alive)
        options.survivors.write_text("\n".join(texts))
    if options.share < 1:
        print(f"A sample, {options.share:.0%} of the mutants that mutmut makes:")
    print_table(results)


if __name__ == "__main__":
    main()
