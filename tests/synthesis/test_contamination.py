"""Prompts of evaluations are left out of training data. Which are left out depends on the texts only."""

import json
import random
from fractions import Fraction

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tessy_jax.cli import main
from tessy_jax.config import Data, Decontamination, Pipeline, read
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.evaluate.job import TASK_KINDS
from tessy_jax.mini import evaluation as mini
from tessy_jax.pipeline import own_questions
from tessy_jax.records import Failure
from tessy_jax.store import RunReader
from tessy_jax.synthesis.contamination import Index, Question, contaminated, jaccard, questions, shingles, words_of
from tessy_jax.synthesis.prompts import Prompt
from tests.small_job import job
from tests.synthesis import tiny_pair

WORDS = [f"w{i}" for i in range(200)]
NEVER = {"ngram": None, "near_duplicates": None}


def question(name, text):
    return Question(name, [{"role": "user", "content": text}])


def prompts_of(*texts):
    return [Prompt(str(i), [{"role": "user", "content": text}], i) for i, text in enumerate(texts)]


def reasons(texts, others, **options):
    """The reason of each text that is left out, by prompt id."""
    data = Data(path="p.jsonl", decontaminate=Decontamination(**options))
    spare = prompts_of(*texts, "an unrelated text")
    return contaminated(data, spare, [question(f"e{i}", text) for i, text in enumerate(others)])


def shares(a, b, size):
    """Whether two lists of words share a run of `size` words, by a plain search."""
    rows = {tuple(b[i : i + size]) for i in range(len(b) - size + 1)}
    return any(tuple(a[i : i + size]) in rows for i in range(len(a) - size + 1))


texts = st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=6)


@given(texts, texts, st.integers(1, 5))
def test_shared_runs_of_words_are_those_of_a_plain_search(given_texts, others, size):
    out = reasons(given_texts, others, ngram=size, near_duplicates=None, common=100)
    for i, text in enumerate(given_texts):
        words = text.split()
        expected = any(words == other.split() or shares(words, other.split(), size) for other in others)
        assert (str(i) in out) == expected


@settings(max_examples=25, deadline=None)
@given(texts, texts)
def test_near_duplicates_have_the_required_jaccard_similarity(given_texts, others):
    out = reasons(given_texts, others, ngram=None, near_duplicates=0.5)
    for i, text in enumerate(given_texts):
        best = max(Fraction(*_shared(text, other)) for other in others)
        if str(i) in out:
            assert best >= 0.5 or text in others
        assert text not in others or "is the same text" in out[str(i)]


def _shared(a, b):
    ours, theirs = ({tuple(t.split()[i : i + 3]) for i in range(max(1, len(t.split()) - 2))} for t in (a, b))
    return len(ours & theirs), len(ours | theirs)


def test_a_text_with_few_words_changed_is_a_near_duplicate_and_one_with_many_is_not():
    rng = random.Random(0)
    others = [" ".join(rng.choices(WORDS, k=rng.randint(60, 200))) for _ in range(50)]
    near, far = [], []
    for other in others:
        words = other.split()
        near.append(" ".join([*words[:-1], "changed"]))
        far.append(" ".join(word if i % 6 else "changed" for i, word in enumerate(words)))
    out = reasons([*near, *far], others, ngram=None)
    assert out.keys() == {str(i) for i in range(50)}
    for i in range(50):
        similarity = jaccard(shingles(words_of(near[i])), shingles(words_of(others[i])))
        assert out[str(i)] == f"e{i}: is a near duplicate (Jaccard similarity {similarity:.2f})"


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(6)), st.permutations(range(8)))
def test_contamination_does_not_depend_on_the_order_of_prompts_or_evaluations(ours, theirs):
    rng = random.Random(1)
    others = [" ".join(rng.choices(WORDS, k=40)) for _ in range(6)]
    given_texts = [
        others[0],
        f"x {others[1]}",
        " ".join(others[2].split()[5:18]),
        f"{others[3]} {others[4]}",
        "w1",
        *WORDS[:3],
    ]
    index = Index(Decontamination(), [question(f"e{i}", others[i]) for i in ours])
    expected = Index(Decontamination(), [question(f"e{i}", text) for i, text in enumerate(others)])
    assert [index.like(given_texts[i]) for i in theirs] == [expected.like(given_texts[i]) for i in theirs]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What is 6 × 7?", "what is  6 × 7"),
        ("**Find** the *sum*.", "find the sum"),
        ("ﬁnd ½", "FIND 1⁄2"),
        ("- one\n- two", "one, two"),
        ("Straße", "STRASSE"),
        ("a well-known sum", "a well known sum"),
        ("x − 1", "x - 1"),
        ("求和。", "求 和"),
    ],
)
def test_case_width_punctuation_and_layout_do_not_count(a, b):
    assert words_of(a) == words_of(b)
    assert reasons([a], [b], **NEVER) == {"0": "e0: is the same text"}


@pytest.mark.parametrize(("a", "b"), [("A 7 + 3", "A 7 - 3"), ("A 7 * 3", "A 7 3"), ("x = 1", "x < 1"), ("求和", "求积")])
def test_texts_that_differ_in_a_symbol_differ(a, b):
    assert reasons([a], [b], **NEVER) == {}


def test_words_that_many_evaluation_prompts_share_are_ignored():
    instruction = "Please reason step by step and put your final answer within a box at the very end."
    others = [f"{instruction} {' '.join(WORDS[10 * i : 10 * i + 10])}" for i in range(12)]
    mine = f"{instruction} An entirely different task follows here."
    assert reasons([mine], others) == {}
    assert "shares 13 words in a row: please reason step" in reasons([mine], others[:10])["0"]
    assert "is the same text" in reasons([others[3]], others)["0"]


def test_repeated_texts_count_once_and_all_texts_of_one_name_are_compared():
    text, other = " ".join(WORDS[:20]), " ".join(WORDS[20:40])
    index = Index(Decontamination(), [*(question(f"e{i}", text) for i in range(12)), question("e0", other)])
    for shared in (text, other):
        assert index.like(f"{shared} and more") == ("e0", f"shares 13 words in a row: {' '.join(shared.split()[:13])}")


def test_only_user_messages_are_compared_and_a_prompt_without_words_matches_nothing():
    system = {"role": "system", "content": " ".join(WORDS[:40])}
    data = Data(path="p", decontaminate=Decontamination())
    prompts = [Prompt("a", [system, {"role": "user", "content": "one"}], 0), *prompts_of("?!")]
    assert (
        contaminated(data, prompts, [Question("e", [system, {"role": "user", "content": "two"}]), question("f", "…")]) == {}
    )


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.text(st.characters()), min_size=1, max_size=4), st.lists(st.text(st.characters()), min_size=1, max_size=4)
)
def test_any_text_can_be_compared_and_matches_itself(given_texts, others):
    index = Index(Decontamination(ngram=2), [question(str(i), text) for i, text in enumerate(others)])
    for text in given_texts:
        index.like(text)
    for text in others:
        assert (index.like(text) is None) == (not words_of(text))


def test_evaluation_prompts_are_named_by_file_and_id(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 7, "prompt": "one two"}\n')
    (tmp_path / "b.jsonl").write_text('{"problem": "three four", "id": "x"}\n')
    config = Decontamination.model_validate(
        {"against": [str(tmp_path / "a.jsonl"), {"path": str(tmp_path / "b.jsonl"), "prompt": "problem"}]}
    )
    asked = questions(config)
    assert [(question.name, question.messages[0]["content"]) for question in asked] == [
        (f"{tmp_path}/a.jsonl: 7", "one two"),
        (f"{tmp_path}/b.jsonl: x", "three four"),
    ]
    with pytest.raises(DataError, match=r"a\.jsonl:1: has no `problem`.* it holds `id` and `prompt`: set prompt to one"):
        questions(Decontamination.model_validate({"against": [{"path": str(tmp_path / "a.jsonl"), "prompt": "problem"}]}))


def test_no_evaluation_prompts_and_no_remaining_prompts_are_refused_with_the_remedy():
    data = Data(path="p.jsonl", decontaminate=Decontamination())
    with pytest.raises(DataError, match=r"nothing to compare with.* name prompts of evaluations in against"):
        contaminated(data, prompts_of("a"), [])
    with pytest.raises(ValueError, match="against is empty and evaluation false, which leaves nothing to compare with"):
        Decontamination(evaluation=False)
    with pytest.raises(
        DataError, match=r"p\.jsonl: all prompts match prompts of .* '0' \(e: is the same text\); give other prompts"
    ):
        contaminated(data, prompts_of("a", "A"), [question("e", "a")])
    assert contaminated(Data(path="p"), prompts_of("a"), []) == {}


def test_an_unknown_key_of_a_source_is_named(tmp_path):
    file = job(tmp_path, data={"path": "p", "decontaminate": {"against": [{"paths": "x"}]}})
    with pytest.raises(ConfigError, match=r"data.decontaminate.against"):
        read(Pipeline, file)


def test_a_synthesis_skips_contaminated_prompts_and_records_the_reason(tmp_path, capsys):
    pair = tiny_pair.build(tmp_path)
    prompts = tiny_pair.write_prompts(tmp_path / "prompts.jsonl", 6)
    lines = [json.loads(line) for line in prompts.read_text().splitlines()]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[2]]))  # again: two rollouts more
    (tmp_path / "test.jsonl").write_text(json.dumps({"id": "q", "prompt": lines[2]["prompt"].upper() + "!"}) + "\n")
    raw = tiny_pair.settings(pair, prompts, tmp_path / "run", recipe="student_only", max_prompt_tokens=1)  # writes nothing
    raw["data"] |= {"rollouts": 2, "decontaminate": {"against": [str(tmp_path / "test.jsonl")]}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    assert main(["synthesize", str(tmp_path / "run.yaml"), "--dry-run"]) == 0
    assert "10 responses to 5 prompts (0 rows skipped, 2 contaminated)" in capsys.readouterr().out
    for _ in range(2):  # the second finds everything done
        assert main(["synthesize", str(tmp_path / "run.yaml"), "--json"]) == 2  # no response was written
        summary = json.loads(capsys.readouterr().out)
        reader = RunReader(str(tmp_path / "run"))
        out = [failure for failure in reader.failures() if failure.reason == "contaminated"]
        why = f"{tmp_path}/test.jsonl: q: is the same text"
        assert sorted(out, key=lambda failure: failure.rollout) == [
            Failure(f"2/{rollout}", "2", rollout, "contaminated", 0, why) for rollout in range(4)
        ]
        assert summary["run"]["failures"]["contaminated"] == 4
        assert summary["run"]["failures"] == {"contaminated": 4, "prompt_too_long": 10}


def test_a_complete_job_compares_with_its_own_evaluation_by_default(tmp_path):
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": "1 + 1", "answer": "2", "id": "x"}) + "\n")
    tasks = [
        {"name": "sums", "mini": {"families": ["Ae"], "items": 3}, "verifier": "mini"},
        {"name": "table", "path": str(tmp_path / "asked.jsonl"), "verifier": "exact"},
    ]
    for evaluation, expected in ((True, 4), (False, 0)):
        decontaminate = {"evaluation": evaluation, "against": ["other.jsonl"]}
        file = job(tmp_path, data={"path": "p", "decontaminate": decontaminate}, evaluation={"tasks": tasks})
        config = read(Pipeline, file)
        asked = own_questions(config, config.data, {**TASK_KINDS, **mini.TASK_KINDS})
        assert len(asked) == expected
        assert not asked or (asked[3].name, asked[3].messages[0]["content"]) == ("table/x", "1 + 1")


def test_an_unreadable_contamination_source_is_reported_before_any_stage(tmp_path, capsys):
    file = job(tmp_path)
    assert main(["run", str(file), "--set", "data.decontaminate={against: [nowhere.jsonl]}"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "job" / "config.yaml").exists()
