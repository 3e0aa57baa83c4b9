"""The report's sections: from the stages' records and the counts to charts, tables and examples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phial.data import report_page as html
from phial.data.report_charts import Bar, Column, Part, bars, count, curve, histogram, share, size
from phial.data.report_counts import NEAR, SCORE_BIN, THRESHOLDS, Counts, threshold_bucket
from phial.data.report_page import Section
from phial.errors import FormatError

Record = Mapping[str, Any]
_NAMED = 6  # reasons with a colour of their own; the rest shares one
_SOURCES, _REASONS = 60, 40  # rows of tables and charts; what is left out is said
_BINS = round(5 / SCORE_BIN)


def overview(records: Sequence[Record], counts: Counts) -> Section:
    """The figures one looks at first."""
    first, last = records[0], records[-1]
    n_bytes = sum(entry.get("bytes_kept", 0) for entry in last["by_source"].values())
    seconds = sum(record.get("seconds", 0) for record in records)
    return Section(
        "overview",
        "At a glance",
        html.tiles(
            [
                (count(first["documents_in"]), "documents came in"),
                (count(last["kept"]), f"left ({share(last['kept'], first['documents_in'])})"),
                (size(n_bytes), "of text left"),
                (count(len(first["by_source"])), "sources"),
                (count(sum(sum(reasons.values()) for reasons in counts.duplicates.values())), "duplicates dropped"),
                (count(sum(counts.contaminated.values())), "with benchmark questions"),
                (f"{seconds:,.0f} s", "running time of the stages"),
            ]
        ),
    )


def funnel(records: Sequence[Record]) -> Section:
    """A bar a stage: what it kept, and what it dropped by reason."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record["dropped"])
    ranked = [reason for reason, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))]
    colours = {reason: f"d{place}" for place, reason in enumerate(ranked[:_NAMED])}
    rows = []
    for record in records:
        parts = [Part(record["kept"], "k", f"kept: {count(record['kept'])}")]
        for reason in ranked:
            if n := record["dropped"].get(reason, 0):
                parts.append(Part(n, colours.get(reason, f"d{_NAMED}"), f"{reason}: {count(n)}"))
        gone = record["documents_in"] - record["kept"]
        note = f"{count(record['kept'])} kept" + (f", −{share(gone, record['documents_in'])}" if gone else "")
        rows.append(Bar(record["name"], parts, note))
    entries = [("k", "kept"), *((colour, reason) for reason, colour in colours.items())]
    if len(ranked) > _NAMED:
        entries.append((f"d{_NAMED}", "other reasons"))
    return Section(
        "funnel",
        "Funnel",
        html.paragraph("Documents that each stage kept, and why it dropped the others."),
        bars(rows, "documents by stage", names=120),
        html.legend(entries),
    )


def by_source(records: Sequence[Record]) -> Section:
    """How far each source's documents came, and what most of the others were dropped for."""
    came = {name: entry["in"] for name, entry in records[0]["by_source"].items()}
    for record in records[1:]:  # a source that joined later, as synthetic text may
        came = {**{name: entry["in"] for name, entry in record["by_source"].items()}, **came}
    rows = []
    for name, n in sorted(came.items(), key=lambda item: (-item[1], item[0]))[:_SOURCES]:
        after = [_kept_of(record, name) for record in records]
        last = records[-1]["by_source"].get(name, {})
        reasons: Counter[str] = Counter()
        for record in records:
            reasons.update(record["by_source"].get(name, {}).get("dropped", {}))
        most = ", ".join(f"{reason} {share(k, n)}" for reason, k in _most(reasons, 2))
        shares = [share(kept, n) for kept in after]
        rows.append([name, count(n), *shares, size(last.get("bytes_kept", 0)), most])
    names = [record["name"] for record in records]
    columns = ["source", "documents", *names, "text left", "dropped most for"]
    parts = [html.paragraph("Share of each source's documents that is left after each stage.")]
    parts.append(html.table(columns, rows, right=["documents", *names, "text left"]))
    if len(came) > _SOURCES:
        parts.append(html.paragraph(f"The {_SOURCES} largest of {len(came)} sources."))
    return Section("sources", "By source", *parts)


def _kept_of(record: Record, source: str) -> int:
    return int(record["by_source"].get(source, {}).get("kept", 0))


def _most(counter: Counter[str], n: int) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:n]


def scores(counts: Counts) -> Section | None:
    """The scores' histogram, of everything and by source, and what a threshold would leave."""
    if not counts.scores:
        return None
    ticks = [(place / SCORE_BIN, str(place)) for place in range(6)]
    whole: Counter[int] = Counter()
    for scored in counts.scores.values():
        whole.update(scored)
    pictures = []
    for name, scored in sorted(counts.scores.items(), key=lambda item: (-_mean(item[1]), item[0]))[:_SOURCES]:
        note = f"{_mean(scored):.2f} · {count(sum(scored.values()))}"
        pictures.append(
            histogram(_columns(scored), ticks, f"scores of {name}", width=270, height=110, title=name, note=note)
        )
    parts = [
        html.paragraph(
            f"Educational value, 0 to 5, of all {count(sum(whole.values()))} documents that were scored. "
            "Scores are stored and decide nothing by themselves: a mixture chooses its ranges."
        ),
        histogram(_columns(whole), ticks, "scores of all documents", height=150),
        html.heading("What a threshold would leave"),
        curve(_left(counts, whole), "share of the text left by threshold", marks=THRESHOLDS),
        html.paragraph(
            "Share of the scored text's characters at or above a score; dashed: the thresholds shown below."
        ),
        html.heading("By source, the highest mean first"),
        html.many(pictures),
    ]
    if len(counts.scores) > _SOURCES:
        parts.append(html.paragraph(f"{_SOURCES} of {len(counts.scores)} sources."))
    return Section("scores", "Scores", *parts)


def _mean(scored: Counter[int]) -> float:
    return sum((place + 0.5) * SCORE_BIN * n for place, n in scored.items()) / sum(scored.values())


def _columns(scored: Counter[int]) -> list[Column]:
    columns = []
    for place in range(_BINS):
        label = f"{place * SCORE_BIN:.1f} to {(place + 1) * SCORE_BIN:.1f}: {count(scored[place])}"
        columns.append(Column([Part(scored[place], "k", label)]))
    return columns


def _left(counts: Counts, whole: Counter[int]) -> list[tuple[float, float, str]]:
    """(threshold, share of characters left, words), from the histogram."""
    points, total = [], sum(counts.score_characters.values())
    for place in range(_BINS + 1):
        characters = sum(n for where, n in counts.score_characters.items() if where >= place)
        documents = sum(n for where, n in whole.items() if where >= place)
        score = place * SCORE_BIN
        words = f"from {score:.1f}: {count(documents)} documents, {share(characters, total)} of the text"
        points.append((score, characters / total if total else 0.0, words))
    return points


def thresholds(counts: Counts) -> Section | None:
    """For each threshold, documents just above and just below it."""
    if not counts.scores:
        return None
    parts = [html.paragraph(f"Documents within {NEAR:g} of a threshold, drawn evenly: on the left what it would keep.")]
    for place, threshold in enumerate(THRESHOLDS):
        kept, gone = (counts.samples.of(threshold_bucket(threshold, above)) for above in (True, False))
        left = "".join(html.example(one, kept=True) for one in kept) or html.example(None, kept=True, missing="none")
        right = "".join(html.example(one, kept=False) for one in gone) or html.example(None, kept=False, missing="none")
        parts.append(html.folded(f"Threshold {threshold:g}", html.side_by_side(left, right), open_=place == 1))
    return Section("thresholds", "At each threshold", *parts)


def shapes(counts: Counts) -> Section:
    """Lengths and languages, of what was kept and what was dropped."""
    used = sorted({*counts.lengths["kept"], *counts.lengths["dropped"]})
    parts = [
        html.legend([("k", "kept to the end"), ("d0", "dropped by a stage")]),
        html.heading("Length in characters"),
    ]
    if used:
        places = range(used[0], used[-1] + 1)
        columns = [Column(_both(counts.lengths, place, f"{_edge(place)} to {_edge(place + 1)}")) for place in places]
        ticks = [(place - used[0], _edge(place)) for place in places if place % 4 == 0]
        parts.append(histogram(columns, ticks, "documents by length"))
    found = Counter(counts.languages["kept"]) + Counter(counts.languages["dropped"])
    if found:
        parts.append(html.heading("Language"))
        rows = []
        for name, n in _most(found, 15):
            note = f"{count(n)} · {share(counts.languages['kept'][name], n)} kept"
            rows.append(Bar(name, _both(counts.languages, name, name), note))
        parts.append(bars(rows, "documents by language", names=60))
        known = f"The language of {count(sum(found.values()))} of {count(counts.documents)} documents was asked for"
        parts.append(html.paragraph(f"{known}; {len(found)} languages were found, the 15 most frequent are shown."))
    return Section("shapes", "Length and language", *parts)


def _both(by: Mapping[str, Counter[Any]], key: Any, name: str) -> list[Part]:
    return [
        Part(by[where][key], colour, f"{name}, {where}: {count(by[where][key])}")
        for where, colour in (("kept", "k"), ("dropped", "d0"))
    ]


def _edge(place: int) -> str:
    characters = 2 ** (place / 2)
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if characters >= factor:
            return f"{characters / factor:.3g}{unit}"
    return f"{characters:.0f}"


def duplicates(records: Sequence[Record], counts: Counts) -> Section | None:
    """By reason and source, sizes of the groups, and pairs to look at."""
    if not counts.duplicates:
        return None
    reasons = sorted({reason for found in counts.duplicates.values() for reason in found})
    rows = []
    for source, found in sorted(counts.duplicates.items(), key=lambda item: (-sum(item[1].values()), item[0])):
        came = next((r["by_source"][source]["in"] for r in records if source in r["by_source"]), 0)
        each = [count(found[reason]) for reason in reasons]
        rows.append([source, *each, share(sum(found.values()), came)])
    of_size: Counter[str] = Counter()
    for members, n in counts.groups.sizes().items():
        of_size[_group(members)] += n
    sizes = [Bar(name, [Part(of_size[name], "d0", count(of_size[name]))], count(of_size[name])) for name in _GROUPS]
    parts = [
        html.table(["source", *reasons, "of its documents"], rows[:_SOURCES], right=[*reasons, "of its documents"]),
        html.heading("Size of the groups of documents that are alike"),
        bars([bar for bar in sizes if of_size[bar.name]], "groups by size", names=80),
    ]
    if counts.groups.share < 1:
        parts.append(html.paragraph(f"An even sample of {share(counts.groups.share, 1)} of the groups."))
    parts.append(html.heading("Pairs: dropped, and what was kept of it"))
    for pair in counts.pairs:
        parts.append(
            html.side_by_side(
                html.example(pair.duplicate, kept=False),
                html.example(pair.of, kept=True, missing="what it is a copy of was dropped by the same stage"),
            )
        )
    return Section("duplicates", "Duplicates", *parts)


_GROUPS = ["2", "3", "4", "5 to 8", "9 to 16", "17 to 64", "65 to 256", "more"]


def _group(members: int) -> str:
    for most, name in ((4, str(members)), (8, "5 to 8"), (16, "9 to 16"), (64, "17 to 64"), (256, "65 to 256")):
        if members <= most:
            return name
    return "more"


def contamination(records: Sequence[Record], counts: Counts) -> Section | None:
    """Documents that held benchmark questions, by benchmark, with examples."""
    if not any(record["name"] == "decontaminate" for record in records):
        return None
    if not counts.contaminated:
        return Section("contamination", "Contamination", html.paragraph("No document held a benchmark's question."))
    rows = [
        Bar(name, [Part(n, "d1", f"{name}: {count(n)}")], f"{count(n)} documents")
        for name, n in _most(counts.contaminated, _REASONS)
    ]
    parts = [bars(rows, "documents by benchmark"), html.heading("Examples")]
    for bucket in counts.samples.buckets():
        if bucket.startswith("reason contaminated"):
            parts += [html.example(one, kept=False) for one in counts.samples.of(bucket)]
    return Section("contamination", "Contamination", *parts)


def dropped(records: Sequence[Record], counts: Counts) -> Section | None:
    """Every reason with its number, where it struck most, and examples."""
    parts: list[str] = []
    for record in records:
        reasons = Counter({reason: n for reason, n in record["dropped"].items() if n})
        if not reasons:
            continue
        parts.append(html.heading(record["name"]))
        shown = _most(reasons, _REASONS)
        rows = [Bar(r, [Part(n, "d0", count(n))], f"{count(n)} · {share(n, record['documents_in'])}") for r, n in shown]
        parts.append(bars(rows, f"reasons of {record['name']}", names=270))
        if len(reasons) > len(shown):
            parts.append(html.paragraph(f"The {len(shown)} most frequent of {len(reasons)} reasons."))
        for reason, _ in shown:
            inside = "".join(html.example(one, kept=False) for one in counts.samples.of(f"reason {reason}"))
            if inside:
                where = _most(Counter({s: e["dropped"].get(reason, 0) for s, e in record["by_source"].items()}), 3)
                most = ", ".join(f"{name} {count(n)}" for name, n in where if n)
                parts.append(html.folded(f"{reason} (most in {most})", inside))
    return Section("dropped", "Why documents were dropped", *parts) if parts else None


def phases(run: Path) -> Section | None:
    """Tokens by phase and source, of the mixture's plan; None where the run has none. FormatError where damaged."""
    found = sorted(run.glob("[0-9][0-9]-mix/plan.json"))
    if not found:
        return None
    drawn: dict[str, Counter[str]] = {}
    rows: list[list[str]] = []
    try:
        for phase in json.loads(found[0].read_text("utf-8"))["phases"]:
            tokens = drawn.setdefault(str(phase["name"]), Counter())
            for row in phase["sources"]:
                tokens[str(row["source"])] += int(row["tokens"])
                low, high = row.get("min_quality"), row.get("max_quality")
                scores_ = f"{0 if low is None else low:g} to {5 if high is None else high:g}"
                scores_ = "any" if low is None and high is None else scores_
                unique, epochs = count(row["unique_tokens"]), f"{row['epochs']:.2f}"
                rows.append([phase["name"], row["source"], scores_, unique, epochs, count(row["tokens"])])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{found[0]} is no plan of a mixture: {error!r}", "run the mix stage again") from error
    total: Counter[str] = sum(drawn.values(), Counter())
    palette = ("k", "d0", "d1", "d2", "d3", "d4", "d5")
    colours = {name: palette[place] for place, (name, _) in enumerate(_most(total, len(palette)))}
    drawing = []
    for phase, tokens in drawn.items():
        parts = [Part(tokens[n], colours.get(n, "d6"), f"{n}: {count(tokens[n])}") for n, _ in _most(total, len(total))]
        drawing.append(Bar(phase, parts, f"{count(sum(tokens.values()))} tokens"))
    columns = ["phase", "source", "score", "tokens there", "epochs", "tokens read"]
    return Section(
        "phases",
        "Tokens by phase",
        bars(drawing, "tokens by phase and source", names=120),
        html.legend([(colour, name) for name, colour in colours.items()]),
        html.table(columns, rows, right=columns[3:]),
    )
