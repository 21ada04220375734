"""With ``--transformers-path DIR`` the model and its guests are tested with the transformers of that folder too."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ["test_model.py", "test_generation.py", "test_compiled.py", "test_format.py", "test_format_damage.py"]


def test_the_model_and_its_guests_pass_with_the_other_transformers(other_transformers):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(other_transformers), str(ROOT)])}
    which = [sys.executable, "-c", "import transformers; print(transformers.__file__)"]
    found = subprocess.run(which, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(found).is_relative_to(other_transformers)
    folders = [str(ROOT / "tests" / "model" / name) for name in TESTS] + [str(ROOT / "tests" / "guests")]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *folders]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
