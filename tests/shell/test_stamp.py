"""A run that adapted on validation text cannot lose its stamp; its ranked twin never wears it.

Seeds 3 and 4 and their twins, shrunk, go the whole road. Then somebody changes the command line, the recipe, the
manifests with all their hashes, or copies folders about: a stage refuses, or the audit of the record fails D1.
"""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from modeling_pgolf.errors import FormatError
from modeling_pgolf.quantization_pgolf import pack, read_frame_file, read_track, write_frame_file
from pgolf import run as stages
from pgolf.audit.facts import track_fact
from pgolf.cli import main
from pgolf.corpus.splits import file_sha256
from pgolf.integrity import check_record, integrity
from pgolf.publication import judge_record, reasons_against_ranking
from pgolf.stages import STAMP
from pgolf.track import mark_checkpoint
from pgolf.workdir import MANIFEST, RunFolder, file_hashes

REASON = "the historical track adapts on validation text before it scores that text"


@pytest.fixture
def copied(finished, tmp_path):
    """Copies of finished runs, in a root of their own, that a test may change."""

    def copy(name):
        run = finished(name)
        return RunFolder(shutil.copytree(run.path, tmp_path / "runs" / run.path.name))

    return copy


@pytest.fixture
def old(copied):
    return copied("seed3_discriminative")


@pytest.fixture
def twin(copied):
    return copied("seed3_discriminative_ranked")


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def launch(stage, run, *overrides):
    """Start a stage of a run as the command line does, with the recipe that lies there."""
    place = ["--root", str(run.path.parents[1]), "--run", run.path.name]
    arguments = [str(run.path / "recipe.json"), *place, *overrides]
    main(["record", *arguments]) if stage == "record" else stages.door(stage, arguments)


def refused(capsys, stage, run, *overrides):
    """Return what a stage says that ends with status 1 and changes nothing."""
    before = file_hashes(run.path)
    with pytest.raises(SystemExit) as end:
        launch(stage, run, *overrides)
    assert end.value.code == 1 and file_hashes(run.path) == before
    return capsys.readouterr().err


def audited(capsys, record):
    """Return the verdict and what was found on the track, as ``pgolf audit`` prints it, and the checks that fail."""
    try:
        main(["audit", str(record)])
        status = 0
    except SystemExit as end:
        status = end.code
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if re.search(r"\bD1  track ", line)]
    failing = [" ".join(line.split()[1:3]) for line in lines if line.startswith("FAIL")]
    assert status == (1 if failing else 0)
    return line.split()[0], line, failing


def against_ranking(record):
    return "; ".join(reasons_against_ranking(record, judge_record(record, "strict")))


@pytest.mark.parametrize("seed", ["seed3_discriminative", "seed4_prequant"])
def test_a_seed_fails_and_its_twin_passes(finished, capsys, seed):
    old, twin = finished(seed), finished(f"{seed}_ranked")
    verdict, line, failing = audited(capsys, old.record)
    assert (verdict, failing) == ("FAIL", ["D1 track", "D1 text"])
    assert "historical in recipe.json, manifests/training.json" in line and f"model.safetensors; {REASON}" in line
    verdict, line, failing = audited(capsys, twin.record)
    assert (verdict, failing) == ("PASS", []) and "ranked, in all 7 places" in line
    assert STAMP in (old.record / "README.md").read_text() and STAMP not in (twin.record / "README.md").read_text()
    assert STAMP in against_ranking(old.record) and STAMP not in against_ranking(twin.record)


@pytest.mark.parametrize("stage", ["train", "export", "score", "record"])
def test_the_command_line_takes_no_stamp_off(old, capsys, stage):
    assert "another recipe or other overrides" in refused(capsys, stage, old, "--track", "ranked")


def forge_run(run):
    """Edit the recipe and the manifests of a run to the ranked track, with every hash that follows from it."""
    recipe = run.path / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"historical"', '"ranked"'))
    for folder in (run.checkpoint, run.artifact, run.scores):
        change(folder / MANIFEST, track="ranked", recipe_sha256=file_sha256(recipe), outputs=file_hashes(folder))


def test_an_edited_recipe_is_not_the_one_that_trained(old, capsys):
    recipe = old.path / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"historical"', '"ranked"'))
    for stage, place in (("export", "checkpoint"), ("score", "artifact"), ("record", "checkpoint")):
        told = refused(capsys, stage, old)
        assert f"LegalityError: asked for the ranked track; {place}/{MANIFEST} names historical" in told


def test_manifests_edited_with_all_their_hashes_leave_the_weights(old, capsys):
    forge_run(old)
    for stage, place in (("export", "checkpoint"), ("score", "artifact"), ("record", "checkpoint")):
        assert f"{place}/model.safetensors names historical" in refused(capsys, stage, old)


def test_one_edited_manifest_is_seen_beside_the_others(twin, capsys):
    change(twin.scores / MANIFEST, track="historical")
    assert f"recipe.json and scores/{MANIFEST} disagree on the track" in refused(capsys, "record", twin)


@pytest.mark.parametrize(("folder", "stage"), [("checkpoint", "export"), ("artifact", "score"), ("artifact", "record")])
def test_a_copied_folder_stays_historical(old, twin, capsys, folder, stage):
    shutil.rmtree(twin.path / folder)
    shutil.copytree(old.path / folder, twin.path / folder)
    assert f"{folder}/{MANIFEST} names historical" in refused(capsys, stage, twin)
    manifest = json.loads((twin.path / folder / MANIFEST).read_text())
    forge_run(twin)
    if stage == "record":  # and the score is said to be of it
        scored = {f"artifact/{name}": sha for name, sha in manifest["outputs"].items()}
        inputs = json.loads((twin.scores / MANIFEST).read_text())["inputs"]
        change(twin.scores / MANIFEST, inputs=inputs | scored)
        trained = file_sha256(twin.checkpoint / "model.safetensors")
        change(twin.artifact / MANIFEST, inputs={"checkpoint/model.safetensors": trained})
    assert f"{folder}/model.safetensors names historical" in refused(capsys, stage, twin)


def test_weights_without_a_track_go_nowhere(twin, capsys):
    weights = twin.checkpoint / "model.safetensors"
    save_file(load_file(weights), weights.with_name("new"), {"format": "pt"})
    weights.with_name("new").rename(weights)
    forge_run(twin)
    assert "checkpoint/model.safetensors names none" in refused(capsys, "export", twin)


def test_weights_that_are_no_file_of_weights(twin, capsys):
    (twin.checkpoint / "model.safetensors").write_bytes(b"{}")
    forge_run(twin)
    assert "FormatError: checkpoint/model.safetensors cannot be read" in refused(capsys, "export", twin)


def forge_record(record):
    """Edit everything in a record but the weights' own file, and give it the hashes that follow."""
    for path in [record / "recipe.json", *record.glob("manifests/*.json")]:
        path.write_text(path.read_text().replace('"historical"', '"ranked"'))
    for path in record.glob("manifests/*.json"):
        change(path, recipe_sha256=file_sha256(record / "recipe.json"))
    for path in [record / name for name in ("README.md", "submission.json", "stages.json", "report.html")]:
        text = re.sub(rf"{STAMP}[^\"<*]*", "", path.read_text())
        path.write_text(text.replace('"historical"', '"ranked"'))
    said = json.loads((record / "submission.json").read_text())["pgolf"]
    change(record / "submission.json", pgolf=said | {"recipe_sha256": file_sha256(record / "recipe.json")})
    folders = {"checkpoint": "training", "artifact": "quantization", "scores": "evaluation"}
    inputs = {f"{f}/{MANIFEST}": file_sha256(record / "manifests" / f"{stage}.json") for f, stage in folders.items()}
    change(record / MANIFEST, track="ranked", stamp="", inputs=inputs, outputs=file_hashes(record))


def test_a_record_with_an_edited_recipe(old, capsys):
    recipe = old.record / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"historical"', '"ranked"'))
    verdict, line, failing = audited(capsys, old.record)
    assert verdict == "FAIL" and REASON in line and "; ranked in recipe.json" in line
    assert "E3 files" in failing


def test_a_record_with_everything_edited_but_the_weights(old, capsys):
    forge_record(old.record)
    verdict, line, failing = audited(capsys, old.record)
    assert (verdict, failing) == ("FAIL", ["D1 track", "D1 text", "E3 stamp"])
    assert "historical in model.safetensors; ranked in recipe.json, manifests/training.json" in line and REASON in line
    assert [finding.name for finding in integrity(old.record) if finding.verdict == "FAIL"] == ["stamp"]
    with pytest.raises(FormatError, match=f"the record earns '{STAMP}: historical track"):
        check_record(old.record)
    assert STAMP in against_ranking(old.record)


def test_a_copied_artifact_in_a_ranked_record(old, twin, capsys):
    for name in json.loads((old.artifact / MANIFEST).read_text())["outputs"]:
        shutil.copyfile(old.artifact / name, twin.record / name)
    change(twin.record / MANIFEST, outputs=file_hashes(twin.record))
    verdict, line, _ = audited(capsys, twin.record)
    assert verdict == "FAIL" and "historical in model.safetensors; ranked in" in line and REASON in line


@pytest.mark.parametrize("place", ["recipe.json", "submission.json", MANIFEST, "manifests/evaluation.json"])
def test_one_place_is_enough(twin, place):
    path = twin.record / place
    path.write_text(path.read_text().replace('"track": "ranked"', '"track": "historical"'))
    fact = track_fact(twin.record)
    assert fact.holds is False and fact.found.startswith(f"historical in {place}; ranked in")


def test_a_track_that_is_not_named_is_unknown(twin, capsys):
    weights = twin.record / "model.safetensors"
    write_frame_file(weights, pack(read_frame_file(weights)))
    change(twin.record / MANIFEST, outputs=file_hashes(twin.record))
    verdict, line, _ = audited(capsys, twin.record)
    assert verdict == "UNKNOWN" and "not named in model.safetensors" in line
    weights.write_bytes(b"no frame")
    assert track_fact(twin.record).holds is None
    for path in [twin.record / name for name in ("recipe.json", MANIFEST, "submission.json")]:
        path.write_text(path.read_text().replace('"track": "ranked"', '"other": "ranked"'))
    shutil.rmtree(twin.record / "manifests")
    fact = track_fact(twin.record)
    assert fact.holds is None and fact.found.startswith("not named in recipe.json") and "ranked" not in fact.found


def test_a_mark_changes_no_weight_and_no_run_of_bytes(finished, tmp_path):
    trained = finished("seed3_discriminative").checkpoint / "model.safetensors"
    assert read_track(finished("seed3_discriminative").artifact / "model.safetensors") == "historical"
    tensors, made = load_file(trained), []
    for name in ("one", "other"):
        save_file(tensors, tmp_path / name, {"format": "pt"})
        mark_checkpoint(tmp_path / name, "historical")
        made.append((tmp_path / name).read_bytes())
    assert made == [trained.read_bytes()] * 2
