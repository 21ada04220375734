"""Run transformers' own tests of a model on ours; they must pass but for the table of exceptions in ``suite.py``.

    make upstream
    python tests/upstream/run_suite.py
    python tests/upstream/run_suite.py --tests CHECKOUT/tests

The wheel of transformers has no tests, its source archive has the common ones: the archive of the installed version is
downloaded from the package index and unpacked in a temporary folder. What it lacks is replaced by stand-ins without
tests: the mixins of generation and of export (and the keys of one configuration test). A checkout of transformers has
them; ``--tests`` names its folder of tests, and nothing is downloaded. Without one, ``tests/model/test_generation.py``
checks generation. Needs ``parameterized``.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import transformers
import tyro

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGE = "transformers_tests"
# What the common tests import and the source archive lacks.
STAND_INS = {
    "__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = "
    '{"return_dict": False, "output_hidden_states": True, "dtype": "float16", "problem_type": "regression"}\n',
}


@dataclass(frozen=True)
class Arguments:
    """tests: the folder ``tests`` of a checkout of transformers, in place of the source archive."""

    tests: Path | None = None


def main() -> None:
    """Print one JSON of counts and, as lines, every failure; the exit status is pytest's."""
    arguments = tyro.cli(Arguments, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if arguments.tests is None:
            unpack(download(place), place / PACKAGE)
        else:
            (place / PACKAGE).symlink_to(arguments.tests.resolve())
        provide_stand_ins(place / PACKAGE)
        status = run(place)
        print(json.dumps(counts(place / "report.xml"), indent=2))
    sys.exit(status)


def download(folder: Path) -> Path:
    """Fetch the source archive of the installed transformers."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    wanted = f"transformers=={transformers.__version__}"
    subprocess.run([*pip, "--no-binary", ":all:", "--dest", str(folder), wanted], check=True)
    (archive,) = folder.glob("transformers-*.tar.gz")
    return archive


def unpack(archive: Path, package: Path) -> None:
    """Unpack the tests of a source archive as ``package``."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            parts = Path(member.name).parts
            if len(parts) > 2 and parts[1] == "tests":
                member.name = str(Path(*parts[2:]))
                tar.extract(member, package, filter="data")


def provide_stand_ins(package: Path) -> None:
    """Write what is missing; a checkout lacks nothing and is left alone."""
    for name, source in STAND_INS.items():
        file = package / name
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_text(source)


def run(place: Path) -> int:
    """Run the suite with pytest, in a process that finds the tests; returns its exit status."""
    quiet = ["-q", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    command = [sys.executable, "-m", "pytest", *quiet, f"--junitxml={place / 'report.xml'}", str(HERE / "suite.py")]
    path = [str(place), str(ROOT / "tests"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(path)}).returncode


def counts(report: Path) -> dict[str, object]:
    """Count outcomes by class, and reasons of skips."""
    outcomes: dict[str, Counter[str]] = {}
    skips: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [child for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = kinds[0].tag if kinds else "passed"
        if outcome == "skipped":
            outcome = "expected failure" if kinds[0].get("type") == "pytest.xfail" else outcome
            skips[kinds[0].get("message") or outcome] += 1
        outcomes.setdefault(str(case.get("classname")).rpartition(".")[2], Counter())[outcome] += 1
    return {"transformers": transformers.__version__, **outcomes, "reasons of skips": dict(skips.most_common())}


if __name__ == "__main__":
    main()
