"""The leaderboard: what it ranks, what it does not, and a page that needs nothing but itself."""

import itertools
import json
import re
import shutil
import statistics
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from finished_run import FACTS, finish, tiny_recipe, write_scores
from matplotlib.dates import num2date

from modeling_pgolf.errors import FormatError, RecipeError
from pgolf import entries, leaderboard
from pgolf.corpus.build import CorpusConfig
from pgolf.corpus.fineweb import ChallengeShards
from pgolf.entries import CHALLENGE_TEXT, read_entries
from pgolf.hub import Published
from pgolf.leaderboard import arrange, progress_figure, write_page
from pgolf.record import write_record
from pgolf.workdir import MANIFEST

SHIFTS = {1: 0.0, 2: 0.02, 3: 0.07}  # nats that each seed's scores are worse by


def recorded(root, shift=0.0, **changes):
    """A record whose nats are all worse by ``shift``."""
    recipe = tiny_recipe(**changes)
    run = finish(root, recipe, FACTS)
    draw, torch.rand = torch.rand, lambda *size, **options: draw(*size, **options) + shift
    try:
        write_scores(recipe, run)
    finally:
        torch.rand = draw
    return write_record(recipe, run)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Records by name: three seeds of one system, a worse one, a better but historical one, one on another text."""
    root, tiny = tmp_path_factory.mktemp("records"), tiny_recipe()
    found = {
        f"seed {seed}": recorded(root / str(seed), shift, training=replace(tiny.training, seed=seed))
        for seed, shift in SHIFTS.items()
    }
    found["historical"] = recorded(root / "h", -0.2, name="early peek", track="historical")
    entry = json.loads((found["historical"] / "submission.json").read_text())
    (found["historical"] / "submission.json").write_text(json.dumps(entry | {"author": "<b>peek</b>"}))
    found["other"] = recorded(root / "o", 0.1, name="other")
    found["official"] = recorded(root / "c", name="official", corpus=CorpusConfig(ChallengeShards()))
    return found


def bits(record):
    return json.loads((record / "submission.json").read_text())["val_bpb"]


def boards_of(records):
    return arrange(read_entries([str(record) for record in records], Path())[0])


def test_seeds_of_one_recipe_are_one_system(records):
    (board,) = boards_of(records[name] for name in ("seed 2", "seed 1", "seed 3"))
    (system,) = board.ranked
    scores = [bits(records[f"seed {seed}"]) for seed in SHIFTS]
    assert [entry.seed for entry in system.entries] == [1, 2, 3]
    assert system.mean == statistics.fmean(scores)
    assert system.standard_error == pytest.approx(statistics.stdev(scores) / 3**0.5) and system.standard_error > 0
    assert system.overall == "UNKNOWN" and dict(system.verdicts)["PASS"] > 10
    assert not board.apart


def test_one_seed_says_nothing_about_the_spread(records):
    (board,) = boards_of([records["seed 1"]])
    assert board.ranked[0].standard_error is None


def test_stamped_records_stand_apart_and_texts_do_not_mix(records):
    official, own = boards_of(records.values())
    assert official.text == CHALLENGE_TEXT and [s.mean for s in official.ranked] == [bits(records["official"])]
    (stamped,) = own.apart
    assert stamped.mean < own.ranked[0].mean, "it would be first"
    assert "NOT RANKABLE" in stamped.against[0]


def test_a_record_that_fails_the_audit_takes_its_system_off_the_board(records, tmp_path):
    altered = tmp_path / "altered"
    shutil.copytree(records["seed 3"], altered)
    said = json.loads((altered / "submission.json").read_text())
    (altered / "submission.json").write_text(json.dumps(said | {"val_bpb": 1.0}))
    (board,) = boards_of([records["seed 1"], altered])
    assert not board.ranked
    (against,) = board.apart[0].against
    assert against.startswith("seed 3 fails ") and "E3 files match their hashes" in against


def test_what_cannot_be_ranked_is_refused(records, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(records["seed 1"], copy)
    with pytest.raises(RecipeError, match=r"seed 1 of tiny is there twice: .*/1/runs/tiny/record and .*copy; name"):
        boards_of([records["seed 1"], copy])
    with pytest.raises(RecipeError, match="neither a folder here nor USER/NAME"):
        boards_of(["no-such-folder"])
    with pytest.raises(FormatError, match="cannot be ranked"):
        boards_of([tmp_path])


def test_a_record_without_its_manifest_is_left_out(records, tmp_path):
    """Without it no hash is compared, so an altered record would be ranked."""
    altered, out = tmp_path / "altered", tmp_path / "page.html"
    shutil.copytree(records["seed 1"], altered)
    (altered / MANIFEST).unlink()
    told = write_page([str(altered), str(records["seed 2"])], out).splitlines()
    assert "1 ranked, 0 apart" in told[0]
    assert told[1].startswith(f"left out: {altered}: it cannot be ranked: ") and "manifest.json" in told[1]
    assert "could not be read as records: 1 of" in out.read_text()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1.0"])
def test_what_is_no_score_is_refused(records, tmp_path, number):
    altered = tmp_path / "altered"
    shutil.copytree(records["seed 1"], altered)
    text = (altered / "submission.json").read_text()
    (altered / "submission.json").write_text(re.sub(r'"val_bpb": [\d.]+', f'"val_bpb": {number}', text))
    with pytest.raises(FormatError, match="val_bpb"):
        boards_of([altered])


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-11-21T10:00:00"])
def test_what_is_no_moment_of_a_plot_is_refused(records, tmp_path, moment):
    altered = tmp_path / "altered"
    shutil.copytree(records["seed 1"], altered)
    manifest = altered / "manifests" / "evaluation.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"finished": moment}))
    with pytest.raises(FormatError, match="finished"):
        boards_of([altered])


class Page(HTMLParser):
    """The page's rows as lists of cell texts, its tags and what it refers to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.rows, self.text = set(), [], [], ""
        self.sources = {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]
        if ("class", "source") in attributes:
            self.sources[dict(attributes)["href"]] = ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.lasttag == "a" and data.strip():
            self.sources[list(self.sources)[-1]] += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_page_shows_the_evidence_and_needs_nothing_else(records, tmp_path):
    out = tmp_path / "leaderboard.html"
    assert write_page([str(record) for record in records.values()], out) == f"{out}: 3 ranked, 1 apart, on 2 text(s)"
    text = out.read_text()
    page = Page(text)
    inside = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert inside and set(page.references) == {f"#{name}" for name in inside} | page.sources.keys()
    assert text.count("<svg") == 1, "one system has made no progress yet"
    assert not {"link", "iframe", "img", "object"} & page.tags and "@import" not in text
    assert not re.search(r"url\((?!#)", text) and str(tmp_path) not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and inside <= set(ids)
    heads = [row for row in page.rows if "BPB" in row]
    assert len(heads) == 3 and heads[0][0] == "rank" and heads[2][0] == ""
    tiny = next(row for row in page.rows if any(cell.startswith("tiny") for cell in row))
    mean = statistics.fmean(bits(records[f"seed {seed}"]) for seed in SHIFTS)
    assert tiny[0] == "1" and tiny[2] == f"{mean:.4f}" and tiny[4] == "3" and tiny[6] == "12.5"
    assert re.fullmatch(r"UNKNOWN\d+ UNKNOWN, \d+ PASS", tiny[9])
    seeds = [row[1].partition(":")[0] for row in page.rows if len(row) > 1 and row[1].startswith("seed ")]
    assert seeds == ["seed 1", "seed 2", "seed 3"]
    assert "<b>peek</b>" in page.text, "a name is text, whatever it holds"
    assert "historical track" in page.text


def test_each_record_names_and_links_its_own_folder(records, tmp_path):
    """The place on the page is the folder seen from it, and its link opens the report that lies there."""
    out = tmp_path / "leaderboard.html"
    write_page([str(record) for record in records.values()], out)
    sources = Page(out.read_text()).sources
    assert {(tmp_path / source).resolve() for source in sources.values()} == set(records.values())
    assert {(tmp_path / unquote(link)).resolve() for link in sources} == {r / "report.html" for r in records.values()}
    assert any(" " in source for source in sources.values()) and not any(" " in link for link in sources)


def test_the_order_of_scoring_gives_the_best_so_far(records):
    (board,) = boards_of([records["seed 1"]])
    (system,) = board.ranked
    (entry,) = system.entries

    def at(hour, score):
        scored = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=hour)
        return leaderboard.System([replace(entry, scored=scored, said=replace(entry.said, val_bpb=score))])

    axes = progress_figure([at(3, 1.2), at(9, 1.1), at(1, 1.15), at(6, 1.3)]).axes[0]
    line = axes.get_lines()[0]
    assert list(line.get_ydata()) == [1.15, 1.15, 1.15, 1.1, 1.1]
    assert line.get_xdata()[-1] == num2date(axes.get_xlim()[1]), "the best still stands at the right edge"
    assert "1.1000" in axes.figure.get_suptitle()


@pytest.mark.parametrize("hours", [0, 0.01, 5, 24 * 3, 24 * 400])
def test_the_times_of_the_plot_are_told_apart(records, hours):
    (board,) = boards_of([records["seed 1"]])
    (entry,) = board.ranked[0].entries
    later = replace(entry, scored=entry.scored + timedelta(hours=hours))
    axes = progress_figure([leaderboard.System([one]) for one in (entry, later)]).axes[0]
    axes.figure.draw_without_rendering()
    first, last = (num2date(edge) for edge in axes.get_xlim())
    assert first < entry.scored <= later.scored < last < later.scored + timedelta(hours=max(1, hours / 10))
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert len(labels) > 1 and len(set(labels)) == len(labels)
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_repositories_and_collections_of_the_hub(records, tmp_path, monkeypatch):
    asked = []

    def pull(name, folder, api):
        asked.append(name)
        shutil.copytree(records["seed 2" if name.startswith("someone/two") else "seed 1"], folder)
        return Published(name, "c" * 40)

    monkeypatch.setattr(entries, "pull", pull)
    monkeypatch.setattr(entries, "members", lambda name: ["someone/one", "someone/two"])
    out = tmp_path / "page.html"
    write_page(["someone/tiny-64f9a55bb3115b4f513ec026"], out)
    assert asked == ["someone/one", "someone/two"]
    sources = Page(out.read_text()).sources
    assert list(sources.values()) == ["someone/one@ccccccc", "someone/two@ccccccc"]
    assert next(iter(sources)).endswith(f"/someone/one/tree/{'c' * 40}")
    asked.clear()
    (entry,), _ = read_entries(["someone/two@v1"], tmp_path)
    assert asked == ["someone/two@v1"] and entry.seed == 2
