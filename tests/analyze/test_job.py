"""`tessy analyze` draws every figure that its input is enough for, says what is missing, and gives the same bytes again."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from markupsafe import Markup

from tessy_jax import cli
from tessy_jax.analyze.charts import Chart
from tests.report.parsed import parse, tables

from .fake_comparison import WRITERS, build

FIGURES = [
    *("accuracy_in", "accuracy_out", "lengths_tokens", "lengths_words", "loss", "loss_cap", "map", "quality"),
    *("similarity", "tokens", "waste", "words"),
]
TEXTS = ["lengths_tokens", "lengths_words", "map", "similarity", "tokens", "waste", "words"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    return build(tmp_path_factory.mktemp("whole"), epochs=2)


@pytest.fixture(scope="module")
def done(compared):
    assert cli.main(["analyze", str(compared), "--output", str(compared.parent / "first")]) == 0
    return compared.parent / "first"


@pytest.fixture
def undrawn(monkeypatch):
    """For what is not about figures: they are empty."""
    monkeypatch.setattr(Chart, "files", lambda chart: {f"{chart.name}.{kind}": b"" for kind in ("svg", "png")})
    monkeypatch.setattr(Chart, "inline", lambda chart: Markup("<svg></svg>"))


def files(folder):
    return {file.name: file.read_bytes() for file in Path(folder).rglob("*") if file.is_file() and file.name != ".lock"}


def run(folder, variant="tessy", seed=3):
    return folder / "compared" / "student" / f"seed-{seed}" / variant / "round-1"


def test_every_figure_is_a_file_twice_and_on_the_page(done):
    named = sorted(f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png"))
    assert sorted(file.name for file in (done / "figures").iterdir()) == named
    page = parse((done / "report.html").read_text())
    assert len(list(page.all("figure"))) == len(FIGURES)
    assert sum(1 for _ in page.all("svg")) == len(FIGURES)
    assert next(node.one("h2").text for node in page.all("section")) == "Analysed data"


def test_the_numbers_behind_the_figures_are_those_of_the_jobs(done, compared):
    found = json.loads((done / "analysis.json").read_text())
    assert found["variants"] == list(WRITERS)
    assert found["data"]["tessy"] == {"data_sets": 2, "responses": 24, "failures": 2, "sampled": 24}
    assert {name: own["pass@1"] for name, own in found["quality"]["variants"].items()} == dict.fromkeys(WRITERS, 1.0)
    matrix = found["texts"]["similarity"]["matrix"]
    assert matrix[0][2] > matrix[0][1], "tessy's style is the student's"
    assert found["shares"]["kept"]["teacher_only"]["student"] == 0
    assert found["losses"]["curves"]["loss_cap"]["tessy"][1][:2] == [2, 1.5]
    summaries = [
        json.loads((compared.parent / "compared" / place / "summary.json").read_text())
        for place in ("student/seed-3/before", "student/seed-3/tessy/round-1/epochs/001")
    ]
    course = found["accuracy"]["domains"]["in"]["tessy"]
    assert [place for place, *_ in course] == [0, 1, 2, 3]
    assert [one for _, one, *_ in course[:2]] == [summary["domains"]["in"]["pass@1"] for summary in summaries]


def test_the_same_input_gives_the_same_bytes_wherever_they_go(done, compared, capsys):
    assert cli.main(["analyze", str(compared), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    place = compared.parent / "compared" / "analysis"
    assert told["output"] == str(place)
    assert files(place) == files(done)
    assert sorted(told["figures"]) == sorted(file.name for file in (place / "figures").iterdir())


def test_fewer_responses_and_words_may_be_looked_at_and_old_figures_go(done, compared, capsys, undrawn):
    again = compared.parent / "again"
    shutil.copytree(done, again)
    sets = ["analysis.responses=6", "analysis.words=4", "analysis.quality=null"]
    options = [option for one in sets for option in ("--set", one)]
    assert cli.main(["analyze", str(compared), "--output", str(again), *options]) == 0
    found = json.loads((again / "analysis.json").read_text())
    assert found["data"]["tessy"]["sampled"] == 6
    assert len(found["words"]["words"]) == 4
    assert not (again / "figures" / "quality.svg").exists()
    assert "set analysis.quality.verifier to mini, exact or boxed" in capsys.readouterr().err
    assert "were not verified" in (again / "report.html").read_text()


def test_unfinished_jobs_are_named_on_the_page_and_on_stderr(tmp_path, capsys, undrawn):
    file = build(tmp_path, prompts=4)
    (run(tmp_path) / "synthesis" / "summary.json").unlink()
    (run(tmp_path, "teacher_only") / "training" / "summary.json").unlink()
    shutil.rmtree(run(tmp_path, "student_only", 4) / "evaluation")
    shutil.rmtree(tmp_path / "compared" / "student" / "seed-4" / "before")
    assert cli.main(["analyze", str(file)]) == 0
    err, page = capsys.readouterr().err, parse((tmp_path / "compared" / "analysis" / "report.html").read_text())
    for phrase in (
        "Unfinished data sets, left out: 1 of 6 (student/seed-3/tessy).",
        "Jobs with unfinished training: 1 of 6 (student/seed-3/teacher_only).",
        "Jobs with unfinished evaluations: 3 of 6 (student/seed-4/tessy, student/seed-4/teacher_only, ",
        "There are no evaluations after epochs",
        "The likelihood of the data was not computed",
    ):
        assert phrase in err
        assert phrase in page.text
    assert tables(page)["Data sets"][1][:3] == ["tessy", "1", "4"]


def test_a_variant_without_jobs_is_left_out_of_every_figure(tmp_path, capsys):
    file = build(tmp_path, variants=("tessy", "teacher_only"), prompts=4, seeds=(3,))
    shutil.rmtree(run(tmp_path, "teacher_only").parent)
    assert cli.main(["analyze", str(file)]) == 0
    assert "Unfinished data sets, left out: 1 of 2 (student/seed-3/teacher_only)." in capsys.readouterr().err
    place = tmp_path / "compared" / "analysis"
    found = json.loads((place / "analysis.json").read_text())
    assert (
        found["variants"] == list(found["accuracy"]["domains"]["in"]) == list(found["losses"]["curves"]["loss"]) == ["tessy"]
    )
    assert (place / "figures" / "accuracy_in.svg").exists()


def test_epochs_without_an_evaluation_are_named(tmp_path, capsys, undrawn):
    file = build(tmp_path, prompts=2, seeds=(3,), epochs=1)
    shutil.rmtree(run(tmp_path, "teacher_only") / "epochs")
    (run(tmp_path) / "epochs" / "001" / "summary.json").unlink()
    assert cli.main(["analyze", str(file)]) == 0
    errors = capsys.readouterr().err
    assert "unfinished evaluations: 1 of 3 (student/seed-3/tessy)." in errors
    assert "without evaluations after epochs: 2 of 3 (student/seed-3/tessy, student/seed-3/teacher_only)." in errors


def test_run_folders_alone_give_the_figures_of_their_texts(tmp_path, capsys):
    build(tmp_path, prompts=4, seeds=(3,))
    named = [
        f"{name}={run(tmp_path, variant)}/synthesis" for name, variant in (("ours", "tessy"), ("theirs", "teacher_only"))
    ]
    out = tmp_path / "out"
    assert cli.main(["analyze", *named, "--output", str(out), "--set", "analysis.likelihood=null", "--json"]) == 0
    captured = capsys.readouterr()
    assert sorted(file.stem for file in (out / "figures").glob("*.svg")) == TEXTS
    assert json.loads((out / "analysis.json").read_text())["variants"] == ["ours", "theirs"]
    assert "analyze a comparison to include them" in captured.err
    assert json.loads(captured.out)["figures"]


def test_hostile_text_is_text_on_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(Chart, "files", lambda chart: {})
    text = " <script>alert(1)</script><img src=x onerror=alert(1)> \u202eevil $x$ </title> "
    file = build(tmp_path, prompts=4, seeds=(3,), text=text, analysis={"quality": None})
    assert cli.main(["analyze", str(file)]) == 0
    html = (tmp_path / "compared" / "analysis" / "report.html").read_text()
    page = parse(html)
    assert not [node for node in page.all() if node.tag in ("script", "img")]
    assert "\u202e" not in html
    assert "alert" in page.text, "a word like others"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["a.yaml", "b.yaml"], "a.yaml: is not name=folder; give the YAML file of one comparison, or run folders"),
        (["a=runs/a", "b="], "b=: is not name=folder"),
        (["a=runs/a", "a=runs/b", "--output", "x"], "a name is given twice"),
        (["a=runs/a"], "give one with --output"),
        (["a=nowhere", "--output", "x"], "nowhere: is not a run folder"),
        (["a=nowhere", "--output", "x", "--set", "analysis.word=3"], "did you mean analysis.words"),
    ],
)
def test_input_that_cannot_be_analysed_is_refused_with_the_remedy(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["analyze", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_comparison_that_was_not_run_or_is_another_or_unfinished_is_refused(tmp_path, capsys):
    file = build(tmp_path, prompts=2, seeds=(3,))
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"output": str(tmp_path / "nowhere")}))
    assert cli.main(["analyze", str(other)]) == 2
    assert "run `tessy compare` with this configuration first" in capsys.readouterr().err
    assert cli.main(["analyze", str(file), "--set", "synthesis.max_prompt_tokens=39"]) == 2
    assert "other settings (synthesis.max_prompt_tokens)" in capsys.readouterr().err
    for place in (tmp_path / "compared").rglob("synthesis/summary.json"):
        place.unlink()
    assert cli.main(["analyze", str(file)]) == 2
    assert "there is nothing to analyse" in capsys.readouterr().err


def test_another_run_is_never_written_over(compared, capsys):
    before = (compared.parent / "compared" / "config.yaml").read_bytes()
    assert cli.main(["analyze", str(compared), "--output", str(compared.parent / "compared")]) == 2
    assert "holds another kind of run; give another folder with --output" in capsys.readouterr().err
    assert (compared.parent / "compared" / "config.yaml").read_bytes() == before


def test_a_run_that_is_no_synthesis_is_named(compared, tmp_path, capsys):
    place = run(compared.parent) / "training"
    assert cli.main(["analyze", f"a={place}", "--output", str(tmp_path / "x")]) == 2
    assert "holds no synthesis; give the `output` of `tessy synthesize`" in capsys.readouterr().err
