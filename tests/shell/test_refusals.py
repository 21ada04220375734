"""A command that refuses says so in one line, whoever started it and however many processes of it there are."""

import errno
import json
import os
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from modeling_pgolf.errors import RecipeError
from pgolf import cli, processes, run
from pgolf.refusals import TellRefusals, refused_by_disk
from pgolf.siblings import ROOT

RECIPE = """
from pgolf.corpus.build import CorpusConfig, TrainBpe
from pgolf.corpus.local import LocalFolder
from pgolf.recipe import Recipe

recipe = Recipe(name="tiny", corpus=CorpusConfig(LocalFolder({text!r}), TrainBpe(280)))
"""

# One of several processes, or each, finds something to refuse; the first of them a second after the others.
REFUSING = """
import sys, time
from torch import distributed
from modeling_pgolf.errors import RecipeError
from pgolf import processes
from pgolf.refusals import TellRefusals

number = distributed.get_node_local_rank()
processes.PATIENCE = float(sys.argv[1])
with TellRefusals(processes.leave_first_the_word):
    if number == 0:
        time.sleep(1)
    if str(number) in sys.argv[2]:
        raise RecipeError(f"found by {number}")
    time.sleep(60)
"""


def python(*arguments, **changes):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | changes
    return [sys.executable, *arguments], environment


@pytest.mark.parametrize(
    ("patience", "finders", "told"),
    [("30", "01", ["found by 0"]), ("0", "1", ["found by 1"])],
    ids=["found-by-all", "found-by-one"],
)
def test_several_processes_tell_a_refusal_once(tmp_path, patience, finders, told):
    (tmp_path / "stage.py").write_text(REFUSING)
    command, environment = python("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command += [str(tmp_path / "stage.py"), patience, finders]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("pgolf: ")]
    assert ended.returncode == 1 and lines == [f"pgolf: RecipeError: {line}" for line in told], ended.stderr


@pytest.mark.parametrize(("number", "waits"), [(None, []), ("0", []), ("3", [processes.PATIENCE])])
def test_a_door_leaves_the_first_process_the_word(monkeypatch, capsys, number, waits):
    waited = []
    monkeypatch.setattr(processes.time, "sleep", waited.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if number is not None:
        monkeypatch.setenv("LOCAL_RANK", number)
    with pytest.raises(SystemExit) as ended:
        run.door("train", ["nothing.py"])
    assert ended.value.code == 1 and waited == waits
    assert capsys.readouterr().err.startswith("pgolf: RecipeError: there is no recipe file nothing.py")


@pytest.fixture
def unread():
    """The end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        yield pipe


def help_printed_to(output, **changes):
    """Print help in a process of its own; returns its status and what stands on its error stream."""
    command, environment = python("-c", "from pgolf.cli import main; main()", "--help", **changes)
    ended = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.PIPE, text=True, timeout=60)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_who_leaves_ends_a_command_quietly(unread, unbuffered):
    assert help_printed_to(unread, PYTHONUNBUFFERED=unbuffered) == (1, "")


def test_an_output_on_a_full_disk_is_refused():
    with open("/dev/full", "w") as full:
        status, said = help_printed_to(full)
    assert status == 1 and said.startswith("pgolf: the disk refuses ([Errno 28]") and said.count("\n") == 1


def test_a_difference_that_nobody_reads_is_no_error(monkeypatch, capsys, unread):
    monkeypatch.setattr(sys, "stdout", unread)
    with pytest.raises(SystemExit) as ended:
        cli.main(["diff", *(str(ROOT / "recipes" / f"{name}.py") for name in ("sp1024_11l", "sp8192_recurrence"))])
    assert ended.value.code == 1 and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "passes", "told"),
    [(RecipeError("wrong"), SystemExit, "pgolf: RecipeError: wrong\n"), (ValueError("a bug"), ValueError, "")],
)
def test_output_that_nobody_reads_hides_no_error(monkeypatch, capsys, unread, error, passes, told):
    monkeypatch.setattr(sys, "stdout", unread)
    with pytest.raises(passes), TellRefusals():
        print("something")
        raise error
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "of a worker"), ValueError("a bug")])
def test_errors_that_are_bugs_pass(error, capsys):
    with pytest.raises(type(error)), TellRefusals():
        raise error
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (OSError(errno.EROFS, "read-only"), True),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (Exception("File too large (os error 27)"), True),
        (OSError(errno.ENOENT, "missing"), False),
        (SafetensorError("Error while deserializing: I/O error: No such file or directory (os error 2)"), False),
        (RecipeError("no number"), False),
    ],
)
def test_what_a_disk_refuses(error, refused):
    assert refused_by_disk(error) is refused


@pytest.mark.parametrize("number", [errno.EACCES, errno.EISDIR, errno.ENOTDIR])
def test_a_place_that_is_none_is_named(capsys, number):
    with pytest.raises(SystemExit) as ended, TellRefusals():
        raise OSError(number, os.strerror(number), "some/file")
    told = f"pgolf: asked for some/file; found: {os.strerror(number)}; choose another place\n"
    assert ended.value.code == 1 and capsys.readouterr().err == told


def test_an_interrupt_ends_a_command_with_one_line(capsys):
    with pytest.raises(SystemExit) as ended, TellRefusals():
        raise KeyboardInterrupt
    assert ended.value.code == 130 and capsys.readouterr().err == "pgolf: stopped; what was complete is kept\n"


def test_a_full_disk_ends_the_saving_of_a_tokenizer_with_one_line(tmp_path, capsys, full_disk):
    """The library in Rust that writes it raises a plain Exception."""
    (tmp_path / "text").mkdir()
    words = " ".join(f"word{number} of{number % 7} many" for number in range(400))
    for split in ("train", "validation"):
        (tmp_path / "text" / f"{split}.jsonl").write_text(json.dumps({"text": f"{split} {words}"}))
    (tmp_path / "tiny.py").write_text(RECIPE.format(text=str(tmp_path / "text")))
    with pytest.raises(SystemExit) as ended, full_disk(4000):
        cli.main(["corpus", str(tmp_path / "tiny.py"), "--root", str(tmp_path)])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1
    assert said.startswith("pgolf: the disk refuses (File too large (os error 27)); complete folders are kept")
    assert not list((tmp_path / "corpora").glob("*"))
