"""The quality classifier: what its scores depend on, how it learns, its file, its steps."""

from __future__ import annotations

import io
import random
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from phial.data import ngrams
from phial.data.quality import Classifier
from phial.data.quality_file import load_classifier, save_classifier
from phial.data.quality_metrics import measure
from phial.data.quality_training import Labelled, TrainingSettings, rising_curve, split, train_classifier
from phial.errors import ArgumentError, FormatError, PhialError

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


def test_training_twice_gives_the_same_classifier_whatever_the_order_of_the_groups(trained: Classifier) -> None:
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
