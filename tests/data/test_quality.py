"""The quality classifier: what its scores depend on, how it learns, its file, its steps."""

from __future__ import annotations

import io
import json
import random
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from phial.data import ngrams, quality_file
from phial.data.labels import read_labels, read_texts, write_texts
from phial.data.quality import Classifier
from phial.data.quality_file import load_classifier, load_default, save_classifier
from phial.data.quality_metrics import measure
from phial.data.quality_training import Labelled, TrainingSettings, rising_curve, split, train_classifier
from phial.errors import ArgumentError, FormatError, PhialError

MODEL_CARD = Path(__file__).parents[2] / "docs/models/quality-default.md"
LESSON = (
    "Because the force {w} grows with the mass, we first find the {w}, then divide it by the {w}. For example, {w}."
)
CHAT = "lol {w} anyone?? my {w} is sooo {w} haha"
SPAM = "BUY {w} NOW!!! cheap {w} cheap {w} | click here | {w} $99"
WORDS = "apple energy stone river house number light window cloud metal paper garden music engine letter salt".split()


def sentence(template: str, rng: random.Random) -> str:
    while "{w}" in template:
        template = template.replace("{w}", rng.choice(WORDS), 1)
    return template


def labels(count: int = 60) -> list[Labelled]:
    made = []
    for number in range(count):
        rng = random.Random(number)
        for score, template in ((5, LESSON), (2, CHAT), (0, SPAM)):
            text = " ".join(sentence(template, rng) for _ in range(rng.randint(2, 12)))
            made.append(Labelled(text, score, f"{score}/{number}"))
    return made


SMALL = TrainingSettings(bits=10, iterations=40)


@pytest.fixture(scope="module")
def trained() -> Classifier:
    return train_classifier(labels(), SMALL, {"name": "small"})[0]


def test_it_learns_what_the_labels_say() -> None:
    classifier, report = train_classifier(labels(), SMALL, {"name": "small"})
    assert report.f1 > 0.95 and report.kappa > 0.9 and report.spearman > 0.8
    assert classifier.about["metrics"]["f1"] == round(report.f1, 4)
    rng = random.Random("unseen")
    lesson, chat, spam = classifier.scores([sentence(t * 4, rng) for t in (LESSON, CHAT, SPAM)])
    assert lesson > 4 and 1 < chat < 3 and spam < 1


def test_training_twice_gives_the_same_classifier(trained: Classifier) -> None:
    assert train_classifier(labels(), SMALL, {})[0].version == trained.version


def test_a_score_does_not_depend_on_the_batch(trained: Classifier) -> None:
    texts = [label.text for label in labels(40)] + ["", " ", "\0\0", "ü", "ends in zero \0", "\0 begins so", "a" * 9000]
    texts += ["x" * (300 << 10), "word " * 70_000]  # larger than a batch
    together = trained.scores(texts)
    assert np.array_equal(together, np.concatenate([trained.scores([text]) for text in texts]))
    assert np.array_equal(together[::-1], trained.scores(texts[::-1]))
    assert ((together >= 0) & (together <= 5)).all()


def test_the_sum_is_that_of_plain_python(trained: Classifier) -> None:
    """The three sums in one word, chunk by chunk, against a loop."""
    texts = ["The cat sat on the mat. " * 600, "short", ""]  # the first has more n-grams than a chunk
    data, _ = ngrams.pieces(texts)
    logits = np.zeros((len(texts), 3)) + trained.bias
    for group, found in enumerate(ngrams.hashed(data, trained.bits)):
        ends = [*found.starts[1:], len(found.buckets)]
        for row, (start, end) in enumerate(zip(found.starts, ends, strict=True)):
            weights = [trained.tables[group, int(b)].astype(int) for b in found.buckets[start:end]]
            logits[row] += trained.scales[group] * sum(weights) / len(weights)
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        trained.probabilities(texts), likely / likely.sum(axis=1, keepdims=True), rtol=1e-9, atol=1e-15
    )


def test_n_grams_are_of_one_text_only() -> None:
    texts = [b"one two three", b"", b"four five", b"one two three"]
    together = ngrams.hashed(texts, 16)
    for group, found in zip(ngrams.GROUPS, together, strict=True):
        parts = np.split(found.buckets, found.starts[1:])
        for text, part in zip(texts, parts, strict=True):
            alone = next(h for g, h in zip(ngrams.GROUPS, ngrams.hashed([text], 16), strict=True) if g == group)
            assert np.array_equal(part, alone.buckets), (group, text)
    words = [len(part) for part in np.split(together[1].buckets, together[1].starts[1:])]
    assert words == [4, 1, 3, 4], "each word, and the beginning"


def test_words_differ_by_every_letter_and_not_by_case() -> None:
    def word(text: str) -> int:
        return int(ngrams.hashed([text.encode()], 24)[1].buckets[1])

    similar = ["internationally", "international-", "internatXonally", "xnternationally", "internationallx", "inter"]
    assert len({word(text) for text in similar}) == len(similar)
    assert word("Energy") == word("energy")


def test_long_texts_are_read_to_the_end_in_slices() -> None:
    text = "é" * ngrams.SLICE  # two bytes each
    data, owner = ngrams.pieces(["a", text, "b"])
    assert [len(piece) for piece in data] == [1, ngrams.SLICE, ngrams.SLICE, 1]
    assert owner.tolist() == [0, 1, 1, 2]


def test_a_very_long_text_takes_little_more_memory_than_itself(trained: Classifier) -> None:
    text = "many words of a long book " * 800_000  # 21 MB
    trained.scores(["warm"])
    tracemalloc.start()
    score = trained.scores([text])[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(text), "hashing all of it at once takes more than thirty times its size"
    assert score == pytest.approx(trained.scores([text[: len(text) // 3]])[0], abs=0.01)


def test_texts_of_one_group_stay_together_whatever_the_order() -> None:
    examples = [Labelled(f"{group} {n}", n % 6, f"g{group}") for group in range(60) for n in range(5)]
    parts = split(examples, TrainingSettings())
    where: dict[str, set[str]] = {}
    for name, part in parts.items():
        for example in part:
            where.setdefault(example.group, set()).add(name)
    assert all(len(names) == 1 for names in where.values())
    assert sum(map(len, parts.values())) == 300 and all(parts.values())
    again = split(examples[::-1], TrainingSettings())
    assert {name: set(part) for name, part in again.items()} == {name: set(part) for name, part in parts.items()}


def test_labels_that_cannot_be_learnt_are_refused() -> None:
    with pytest.raises(ArgumentError, match="label 7"):
        train_classifier([Labelled("text", 7, "g")], SMALL, {})
    with pytest.raises(PhialError, match="too few labels"):
        train_classifier([Labelled("text", 3, "g")] * 50, SMALL, {})
    with pytest.raises(PhialError, match="too few labels"):
        train_classifier([], SMALL, {})


def test_calibration_mends_a_bent_score_and_never_changes_ranks() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 5, 6000)
    bent = 5 * (truth / 5) ** 3
    seen = np.floor(truth + rng.uniform(0, 1, 6000)).clip(0, 5)
    curve = rising_curve(bent, seen)
    assert (np.diff(curve) > 0).all()
    fresh = np.linspace(0.2, 4.8, 50)
    assert np.abs(np.interp(5 * (fresh / 5) ** 3, *curve) - fresh).max() < 0.35
    assert np.abs(5 * (fresh / 5) ** 3 - fresh).max() > 1.5
    noise = rising_curve(truth, seen[::-1])  # labels that have nothing to do with the scores
    assert (np.diff(noise) > 0).all()


def test_metrics_of_figures_worked_out_by_hand() -> None:
    wanted = np.array([0, 0, 3, 3, 5, 5])
    report = measure(wanted, np.array([0.0, 3.2, 3.2, 1.0, 5.0, 4.0]))
    assert (report.precision, report.recall) == (0.75, 0.75) and report.f1 == 0.75
    assert report.f1_by_label == {0: pytest.approx(2 / 3), 3: 0.5, 5: pytest.approx(2 / 3)}
    assert report.mean_error == pytest.approx((3.2 + 0.2 + 2 + 1) / 6)
    perfect = measure(wanted, wanted.astype(float))
    assert perfect.kappa == perfect.f1 == 1 and perfect.spearman == pytest.approx(1)
    assert perfect.calibration_error == 0
    constant = measure(wanted, np.full(6, 2.0))
    assert constant.kappa == pytest.approx(0) and constant.spearman == 0 and constant.f1 == 0
    assert constant.calibration_error == pytest.approx(16 / 6 - 2)


def test_sentence_embeddings_are_used_where_they_were_trained() -> None:
    def embed(texts: object) -> np.ndarray:  # says whether a text is a lesson, nothing else
        return np.array([[1.0 if "Because" in text else -1.0, 0.5] for text in texts], np.float32)  # type: ignore[attr-defined]

    classifier, report = train_classifier(labels(), SMALL, {}, embedding=("lesson-or-not", embed))
    assert report.f1 > 0.95 and classifier.projection.shape == (2, 3)
    texts = [label.text for label in labels(5)]
    assert np.array_equal(classifier.scores(texts, embed)[:1], classifier.scores(texts[:1], embed))
    with pytest.raises(ArgumentError, match="sentence embeddings"):
        classifier.scores(texts)


# --- the file ---


def test_a_saved_classifier_scores_the_same(trained: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "q.npz"
    save_classifier(trained, path)
    found = load_classifier(path)
    texts = [label.text for label in labels(10)]
    assert np.array_equal(found.scores(texts), trained.scores(texts))
    assert found.about == trained.about and found.version == trained.version
    before = path.read_bytes()
    save_classifier(trained, path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["q.npz"]


def test_a_damaged_file_is_an_error_with_its_name(trained: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "q.npz"
    save_classifier(trained, path)
    whole = path.read_bytes()
    rng = random.Random(0)
    for number in range(200):
        data = bytearray(whole[: rng.randrange(len(whole))] if number % 2 else whole)
        if number % 2 == 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
        try:
            found = load_classifier(path)
        except PhialError as error:
            assert "q.npz" in error.message
        else:  # a bit that nothing reads, as a time in the archive
            assert found.version == trained.version


def rewritten(path: Path, **changes: object) -> None:
    """The file with some of its arrays replaced."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez_compressed(path, **(arrays | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tables": np.zeros((4, 1024, 3), np.int8)}, "the header of"),
        ({"tables": np.zeros((4, 512, 3), np.int8)}, "tables is int8"),
        ({"tables": np.zeros((4, 1024, 3))}, "tables is float64"),
        ({"bias": np.array([0.0, np.nan, 0.0])}, "not finite"),
        ({"curve": np.array([[0.0, 5.0], [5.0, 0.0]])}, "does not rise"),
        ({"header": np.frombuffer(b'{"format": "gguf"}', np.uint8)}, "no quality classifier"),
        ({"header": np.frombuffer(b"[]", np.uint8)}, "no quality classifier"),
        ({"header": np.array([{"format": "x"}], object)}, "cannot be read"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    trained: Classifier, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    path = tmp_path / "q.npz"
    save_classifier(trained, path)
    rewritten(path, **changes)
    with pytest.raises(FormatError, match=says):
        load_classifier(path)


def test_a_file_that_unpacks_without_end_is_refused_before_it_does(tmp_path: Path) -> None:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tables.npy", bytes(300 << 20))
    (tmp_path / "q.npz").write_bytes(stored.getvalue())
    with pytest.raises(FormatError, match="unpacks to"):
        load_classifier(tmp_path / "q.npz")
    with pytest.raises(PhialError, match="no classifier at"):
        load_classifier(tmp_path / "none.npz")


def test_another_version_says_so(trained: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "q.npz"
    save_classifier(trained, path)
    monkeypatch.setattr(ngrams, "VERSION", 99)
    with pytest.raises(FormatError, match="ngrams_version 1, this phial reads 99"):
        load_classifier(path)


# --- the steps ---


def test_every_document_is_scored_and_none_dropped(trained: Classifier, tmp_path: Path) -> None:
    datatrove = pytest.importorskip("datatrove.data")
    from phial.data.quality_steps import Score

    save_classifier(trained, tmp_path / "q.npz")
    documents = [datatrove.Document(label.text, str(n)) for n, label in enumerate(labels(250))]  # more than a batch
    out = list(Score(tmp_path / "q.npz").run(iter(documents)))
    assert [document.id for document in out] == [str(n) for n in range(750)]
    assert [document.metadata["quality"] for document in out] == pytest.approx(
        trained.scores([document.text for document in out]), abs=1e-4
    )
    assert {document.metadata["quality_version"] for document in out} == {trained.version}
    assert all(type(document.metadata["quality"]) is float for document in out)


def test_higher_thresholds_keep_part_of_what_lower_ones_keep(trained: Classifier) -> None:
    datatrove = pytest.importorskip("datatrove.data")
    from phial.data.quality_steps import Score, Threshold

    documents = list(Score(trained).run(datatrove.Document(label.text, label.group) for label in labels()))
    kept = [{document.id for document in Threshold(least).run(iter(documents))} for least in np.linspace(0, 5, 21)]
    assert len(kept[0]) == len(documents) and len(kept[-1]) < len(documents)
    assert all(higher <= lower for lower, higher in zip(kept, kept[1:], strict=False))
    assert len({len(part) for part in kept}) > 3, "the thresholds tell texts apart"


def test_a_threshold_names_its_reason_and_needs_a_score() -> None:
    datatrove = pytest.importorskip("datatrove.data")
    from phial.data.quality_steps import Threshold

    document = datatrove.Document("text", "a7", metadata={"quality": 2.4999})
    assert Threshold(2.5).filter(document) == (False, "quality_below_2.5")
    assert Threshold(2.4999).filter(document) is True
    with pytest.raises(PhialError, match="a7 has no quality score"):
        Threshold(1).filter(datatrove.Document("text", "a7"))
    with pytest.raises(PhialError, match="not from 0 to 5"):
        Threshold(6)


def test_the_version_follows_the_weights(trained: Classifier) -> None:
    tables = trained.tables.copy()
    tables[0, 0, 0] += 1
    assert replace(trained, tables=tables).version != trained.version
    assert replace(trained, about={}).version == trained.version


# --- the classifier shipped with phial; its training never saw these texts ---

TEACHING = {
    "physics": """\
A lever is a rigid bar that turns about a fixed point, the fulcrum. To find out whether it is balanced, we \
compare moments: the moment of a force is the force multiplied by its distance from the fulcrum. A child of 30 \
kilograms who sits 2 metres from the middle of a seesaw balances one of 20 kilograms at 3 metres, because 30 \
times 2 equals 20 times 3. What happens if the heavier child moves half a metre closer? Calculate both moments \
first, and then decide which side goes down.""",
    "biology": """\
Enzymes are proteins that speed up chemical reactions without being used up. Each enzyme has a region called the \
active site, whose shape fits only certain molecules. When the temperature rises, molecules move faster and meet \
the active site more often, so the reaction becomes quicker. Above a certain temperature, however, the protein \
loses its shape and the reaction stops. This explains why a high fever is dangerous.""",
    "programming": """\
A function that calls itself is called recursive. Every recursive function needs a case that it can answer at \
once, otherwise it would never stop. Take the factorial: the factorial of 0 is 1, and the factorial of any \
larger number n is n times the factorial of n - 1. To compute factorial(3), Python therefore first computes \
factorial(2), and so on, until it reaches factorial(0).""",
    "history": """\
Printing with movable type changed Europe because it lowered the cost of a book. Before, a copy took a scribe \
several months; afterwards a workshop could make hundreds in that time. As a consequence, scholars in distant \
cities were able to work from the same text and to correct each other's errors. Luther's ideas spread within \
weeks, whereas earlier reformers had reached only their own region.""",
}
CHATTER = {
    "forum": """Posted by mike77: hey guys just got back from the game, so wet lol. anyone else there??
> jen: yeah was awesome, my throat hurts haha
> mike77: same. who's driving next week? i can take 2 people
> jen: me me me!! btw did you see what Tom was wearing omg""",
    "status": """\
ugh monday again. missed the bus, spilled coffee all over my new shirt and now my phone is at 3%. somebody \
please send cake!! also happy bday to my little bro, can't believe ur 18 already, love you dude""",
    "opinion": """\
i don't get why everybody likes that phone so much. mine froze twice this week and the shop guy just laughed at \
me. never again, im going back to my old one. what do you think? anyone had the same trouble?""",
}
SPAM_PAGES = {
    "spam": """\
CONGRATULATIONS winner!!! You were chosen to get a FREE tablet. Click the link below now and enter your card \
number to pay only $1 shipping. Offer ends today!!! Act now! Act now! 100% guaranteed, no risk. Reply STOP to \
unsubscribe.""",
    "menu": "Home | Products | Support | Sign in | Cart (2) | Checkout | Privacy | Terms | Contact us | © ShopWorld",
    "shop": """\
Kids rain boots blue size 28, free delivery. $19.99 $12.49 You save 38%. In stock. Add to basket. Add to wish \
list. 4.5 out of 5 stars (212 reviews). Customers also viewed: umbrella, rain coat, gloves.""",
}


def test_the_shipped_classifier_ranks_lessons_over_chatter_over_spam() -> None:
    classifier = load_default()
    lessons, chatter, spam = (classifier.scores(list(texts.values())) for texts in (TEACHING, CHATTER, SPAM_PAGES))
    assert lessons.mean() > 3 and (lessons >= 3).sum() >= 3, dict(zip(TEACHING, lessons, strict=True))
    assert lessons.min() > chatter.max() and chatter.max() < 3, dict(zip(CHATTER, chatter, strict=True))
    assert chatter.min() > spam.max() and spam.max() < 1, dict(zip(SPAM_PAGES, spam, strict=True))


def test_the_shipped_classifier_sees_that_words_are_shuffled() -> None:
    classifier, rng = load_default(), random.Random(0)
    for text in TEACHING.values():
        words = text.split() * 2
        rng.shuffle(words)
        assert classifier.scores([" ".join(words)])[0] < classifier.scores([text])[0] - 1


def test_the_shipped_classifier_is_small_and_says_where_it_comes_from() -> None:
    path = Path(quality_file.__file__).with_name(quality_file.DEFAULT)
    assert path.stat().st_size < 2_000_000
    about = load_default().about
    assert about["labels_from"] == "tiers of sources"
    assert {source["tier"] for source in about["sources"].values()} == set(range(6))
    licences = {source["licence"] for source in about["sources"].values()}
    assert not [licence for licence in licences if "NC" in licence or "GPL" in licence or not licence]
    assert about["metrics"]["f1"] > 0.9
    assert load_default().version in MODEL_CARD.read_text("utf-8")


# --- the commands ---


def phial(*arguments: str) -> None:
    from phial.cli.app import app

    app(list(arguments), standalone_mode=False)


def test_from_labels_to_scores_by_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datatrove")
    lines = [{"text": label.text, "score": label.score, "group": label.group} for label in labels()]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = str(tmp_path / "q.npz")
    phial("data", "classifier", str(tmp_path / "labels.jsonl"), "-o", made, "--bits", "10", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown["metrics"]["f1"] > 0.9 and shown["version"] == load_classifier(Path(made)).version
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": t, "id": t[:3]}) + "\n" for t in (LESSON, SPAM)))
    out = tmp_path / "scored.jsonl.zst"
    phial("data", "score", str(tmp_path / "docs.jsonl"), "-o", str(out), "--classifier", made, "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown["documents"] == 2 and sum(row["documents"] for row in shown["scores"]) == 2
    lesson, spam = read_texts(out)
    assert lesson.text == LESSON and lesson.metadata["quality"] > 4 and spam.metadata["quality"] < 1
    first = out.read_bytes()
    phial("data", "score", str(tmp_path / "docs.jsonl"), "-o", str(out), "--classifier", made, "--json")
    assert out.read_bytes() == first
    with pytest.raises(ArgumentError, match="is where the documents are"):
        phial("data", "score", str(out), "-o", str(out))


def test_a_stage_is_scored_into_a_stage_the_same_for_any_number_of_workers(
    trained: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datatrove")
    save_classifier(trained, tmp_path / "q.npz")
    (tmp_path / "in").mkdir()
    for number, part in enumerate((labels(20), labels(40)[60:])):
        (tmp_path / "in" / f"{number}.txt").write_text("\n".join(label.text for label in part))
    (tmp_path / "c.toml").write_text(
        'tasks = 2\nskip = ["clean", "dedup", "decontaminate", "mix"]\n[quality]\nclassifier = "q.npz"\n'
        '[[sources]]\nname = "s"\npaths = ["in/*.txt"]\nlicence = "CC0-1.0"\n'
    )
    phial("data", "run", str(tmp_path / "c.toml"), "-o", str(tmp_path / "run"), "--json")
    stages = json.loads(capsys.readouterr().out)
    assert [(stage["name"], stage["kept"]) for stage in stages] == [("sources", 2), ("quality", 2)]
    scored = list(read_texts(tmp_path / "run" / "04-quality"))
    assert [text.metadata["quality"] for text in scored] == pytest.approx(
        trained.scores([text.text for text in scored]), abs=1e-4
    )
    again = []
    for workers in ("1", "2"):
        out = str(tmp_path / f"out{workers}")
        arguments = ["--classifier", str(tmp_path / "q.npz"), "--workers", workers, "--json"]
        phial("data", "score", str(tmp_path / "run" / "01-sources"), "-o", out, *arguments)
        again.append(json.loads(capsys.readouterr().out)["output_sha256"])
    assert again == [stages[1]["output_sha256"]] * 2


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_files_are_read_as_they_were_written_and_damage_is_named(tmp_path: Path, ending: str) -> None:
    datatrove = pytest.importorskip("datatrove.data")
    path = tmp_path / f"d.{ending}"
    texts = [random.Random(n).randbytes(300).hex() + "\u2028é\n" for n in range(500)]
    assert write_texts((datatrove.Document(t, str(n), metadata={"n": n}) for n, t in enumerate(texts)), path) == 500
    found = list(read_texts(path))
    assert [text.text for text in found] == texts and found[7].metadata == {"n": 7}
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PhialError, match=rf"d\.{ending}:\d+ cannot be read"):
        list(read_texts(path))
    with pytest.raises(PhialError, match="no documents at"):
        list(read_texts(tmp_path / "none"))


def test_a_file_that_ends_early_at_the_end_of_a_line_is_damaged_too(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    stream = zstandard.ZstdCompressor().compressobj()
    data = stream.compress(b'{"text": "a"}\n') + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    (tmp_path / "d.jsonl.zst").write_bytes(data)
    with pytest.raises(PhialError, match="cut short"):
        list(read_texts(tmp_path / "d.jsonl.zst"))
    (tmp_path / "d.jsonl.zst").write_bytes((data + stream.flush()) * 2)
    assert [text.text for text in read_texts(tmp_path / "d.jsonl.zst")] == ["a", "a"]


@pytest.mark.parametrize("line", ["[]", '{"score": 3}', '{"text": "t", "score": 9}', '{"text": "", "score": "3"}', "{"])
def test_a_line_that_is_no_label_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "l.jsonl").write_text('{"text": "a", "score": 3}\n' + line + "\n")
    with pytest.raises(PhialError, match=r"l\.jsonl:"):
        read_labels(tmp_path / "l.jsonl")
