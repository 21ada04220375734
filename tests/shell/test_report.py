"""The report's figures and verdicts: those of the run, and nothing for what did not run."""

import html
import json
import re
import shutil
from dataclasses import replace

import pytest
from finished_run import BYTES, CHUNK, FACTS, finish, tiny_recipe
from safetensors.torch import load_file, save_file

from evaluation.adaptation.score_first import ScoreFirstConfig
from modeling_pgolf.errors import FormatError
from pgolf.audit.facts import Fact
from pgolf.audit.folders import audit_folder
from pgolf.audit.policy import Verdict, judge, load_policy
from pgolf.record import TARGET_BYTES, write_record
from pgolf.report import model_card, report_html
from pgolf.stages import read_facts, stage_table
from pgolf.workdir import MANIFEST, file_hashes


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    recipe = tiny_recipe()
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, adaptation=ScoreFirstConfig(chunk_tokens=CHUNK)))
    run = finish(tmp_path_factory.mktemp("adapted"), recipe)
    write_record(recipe, run)
    return run


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    recipe = tiny_recipe()
    run = finish(tmp_path_factory.mktemp("frozen"), recipe)
    write_record(recipe, run)
    return run


def page(run):
    return (run.record / "report.html").read_text()


def rows(text, heading):
    """The cells of all tables below a heading and above the next, without markup."""
    section = text[text.index(f"<h2>{heading}") + 4 :].split("<h2>")[0]
    lines = [line for table in section.split("<tbody>")[1:] for line in table.split("</tbody>")[0].split("</tr>")[:-1]]
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", line)] for line in lines]


def test_the_verdicts_are_the_auditors(frozen):
    facts, hardware = audit_folder(frozen.record)
    verdicts = judge(facts, load_policy("strict"), hardware)
    expected = {(v.fact.rule, v.fact.name): (v.verdict, v.fact.found) for v in verdicts}
    shown = {(row[1], row[2]): (row[0], html.unescape(row[3])) for row in rows(page(frozen), "What the auditor says")}
    # The finished record has one file more than the page could compare: the page.
    files = len(json.loads((frozen.record / MANIFEST).read_text())["outputs"])
    assert expected.pop(("E3", "files match their hashes")) == ("PASS", f"{files} files do")
    assert shown.pop(("E3", "files match their hashes")) == ("PASS", f"{files - 1} files do")
    assert shown == expected and len(shown) > 20
    assert {verdict for verdict, _ in shown.values()} == {"UNKNOWN", "PASS"}


def test_the_page_itself_is_compared_by_the_auditor(frozen, tmp_path):
    """It says that its own hash is not among those that it shows; in the finished record it is one of them."""
    assert "hashes are those of all files but this page" in " ".join(page(frozen).split())
    altered = shutil.copytree(frozen.record, tmp_path / "altered")
    (altered / "report.html").write_text(page(frozen).replace("PASS", "pass"))
    facts, _ = audit_folder(altered)
    (found,) = [fact for fact in facts if fact.name == "files match their hashes"]
    assert found.holds is False and found.found == "report.html"


def test_an_adapted_run_shows_both_curves_and_the_gains(adapted, frozen):
    both = page(adapted)
    assert 'id="gains-' in both and 'id="running-' in both and "Both scorings begin" in both
    assert (adapted.record / "plots" / "gains.png").is_file()
    alone = page(frozen)
    assert 'id="gains-' not in alone and "No rule adapts" in alone


def test_phases_are_sorted(adapted):
    seconds = [float(row[2]) for row in rows(page(adapted), "Seconds by phase")]
    assert seconds == sorted(seconds, reverse=True) and seconds[0] == 12.5
    shares = [float(row[3].rstrip("%")) for row in rows(page(adapted), "Seconds by phase")]
    assert sum(shares) == pytest.approx(100, abs=0.3)


def test_the_bytes_are_accounted_for(frozen):
    for text in (page(frozen), (frozen.record / "README.md").read_text()):
        told = " ".join(text.split())
        assert f"divides by {BYTES:,} bytes" in told and f"original has {BYTES + 5:,} in UTF-8" in told
        assert "replaces characters of 7 bytes by others of 3, in 1 of 2 documents; 1 blanks" in told


def told_of(tmp_path, plots, facts):
    """Card and page of a run on another corpus, with the plots of this one: drawing takes seconds."""
    recipe = tiny_recipe()
    run = finish(tmp_path, recipe, FACTS | facts)
    read, table = read_facts(run), stage_table(recipe, run)
    verdict = Verdict(Fact("C8", "bytes of the text", None, "found"), "UNKNOWN", "source")
    texts = model_card(recipe, read, table), report_html(recipe, read, table, [verdict], plots)
    return [" ".join(text.split()) for text in texts]


@pytest.mark.parametrize(
    ("known", "told"),
    [({"documents_changed": 0, "free_blanks": 0}, "comes back unchanged."), ({"utf8_bytes": None}, "Only tokens were")],
)
def test_a_text_that_comes_back_or_is_not_known(tmp_path, frozen, known, told):
    texts = told_of(tmp_path, frozen.record / "plots", {"validation": FACTS["validation"] | known})
    assert all(told in text for text in texts)


def test_a_streamed_training_text_has_no_size(tmp_path, frozen):
    card, page = told_of(tmp_path, frozen.record / "plots", {"train": {"tokens": None, "documents": None}})
    assert "streamed" in page and "(streamed)" in card


def test_scores_without_bytes_are_refused(tmp_path):
    recipe = tiny_recipe()
    run = finish(tmp_path, recipe)
    path = run.scores / "nats.safetensors"
    save_file({name: values for name, values in load_file(path).items() if name != TARGET_BYTES}, path)
    manifest = json.loads((run.scores / MANIFEST).read_text())
    (run.scores / MANIFEST).write_text(json.dumps(manifest | {"outputs": file_hashes(run.scores)}))
    with pytest.raises(FormatError, match=r"no target_bytes.*score again"):
        write_record(recipe, run)
    assert not run.record.exists()
