"""The break-fix cycle (phi3-spec §5.3): attack a model, judge, fix what succeeded, tune, measure; round after round.

RUN/config.json          what the run is of; another configuration is another run
RUN/answers.jsonl        every answer of every model, so that nothing is asked twice
RUN/round-N/attack.json  which attacks succeeded on the model of the round before
RUN/round-N/chats.jsonl, pairs.jsonl   what is learnt: of all rounds so far
RUN/round-N/sft/, dpo/   the training runs, their adapters or models
RUN/round-N/measured.json
RUN/report.json, report.md, breakfix.png
RUN/manifest.json        what was made from what; a killed run goes on
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from phial.data.journalled_model import JournalledModel
from phial.data.request_journal import RequestJournal
from phial.errors import PhialError
from phial.eval.redteam import Attacked, check_apart, make_attacks
from phial.eval.safety_judges import Judge, ModelJudge, RuleJudge
from phial.language_model import LanguageModel
from phial.manifest import write_json
from phial.recipe.breakfix_config import BreakfixConfig, Plan, make_plan
from phial.recipe.breakfix_fixes import make_fixes, read_written, write_rows
from phial.recipe.breakfix_measures import Measured, Show, beyond_bounds, compared, judge_attacks, measure, success_rate
from phial.recipe.breakfix_models import LazyModel, Models, Trained
from phial.recipe.breakfix_report import REPORT, write_report
from phial.recipe.stages import Stages
from phial.train.chats import Chat, read_chats

Say = Callable[[str], None]
CONFIG, ANSWERS = "config.json", "answers.jsonl"
_FREE = {"rounds", "stop", "n_threads"}  # what may change when a run goes on: nothing made so far depends on it


class Cycle:
    """A run of the cycle in a folder. Raises PhialError for a folder of another configuration.

    Args:
        models: where models come from.
        judge: a second judge, or the one that decides.
    """

    def __init__(
        self, config: BreakfixConfig, folder: Path, models: Models, judge: LanguageModel | None, say: Say, show: Show
    ) -> None:
        self.config, self.folder, self.models, self.judge = config, folder, models, judge
        self.say, self.show, self.plan = say, show, make_plan(config)
        self.chats = general_chats(config, self.plan)
        self.stages = Stages(folder, say)
        _keep_config(config, self.plan, folder)
        self.trained: list[Trained | None] = [None]
        self.journal: RequestJournal

    def run(self) -> dict[str, Any]:
        """All rounds, as many as pay; what report.json holds."""
        with RequestJournal(self.folder / ANSWERS) as self.journal:
            rounds, best, why = [self._measure(0)], 0, "all rounds are done"
            for number in range(1, self.config.rounds + 1):
                if not self._attack(number):
                    why = f"no attack of round {number} succeeds"
                    break
                self._fix(number)
                self._train(number)
                rounds.append(self._measure(number))
                self._add_losses(rounds)
                if worse := beyond_bounds(rounds[0], rounds[-1], self.config.stop):
                    why = f"round {number} is out of bounds: {worse}"
                    break
                gain = success_rate(rounds[best]) - success_rate(rounds[-1])
                best = number if gain > 0 else best
                if gain < self.config.stop.gain:
                    why = f"round {number} brings no more than {gain:.1%}"
                    break
        return self._report(rounds, best, why)

    def _measure(self, number: int) -> Measured:
        trained, path = self.trained[number], self._path(number, "measured.json")

        def work() -> dict[str, Any]:
            with self._model(trained) as model:
                found = measure(model, self.plan, self._judges(), self.config, self.show)
            write_json(path, found)
            return {"success": success_rate(found)}

        self._make(f"round {number}: measure", trained, [path], work)
        found: Measured = json.loads(path.read_text("utf-8"))
        return found

    def _attack(self, number: int) -> int:
        """Attack the model of the round before; how many attacks succeeded."""
        config, trained, path = self.config, self.trained[number - 1], self._path(number, "attack.json")
        seed = config.seed + number
        attacks = make_attacks(self.plan.fixing, self.plan.ways, per_prompt=config.fix.per_prompt, seed=seed)

        def work() -> dict[str, Any]:
            judge = self._judges()[0]
            with self._model(trained) as model:
                judged = judge_attacks(model, attacks, [judge], config.measure.max_tokens, self.show, "fixing")
            won = [row for row in judged if row.severity(judge.name) >= config.success]
            rows = [{"id": row.attacked.attack.id, "answers": row.attacked.answers} for row in won]
            write_json(path, {"attacks": len(judged), "succeeded": rows})
            return {"attacks": len(judged), "succeeded": len(won)}

        self._make(f"round {number}: attack", trained, [path], work)
        return len(json.loads(path.read_text("utf-8"))["succeeded"])

    def _fix(self, number: int) -> None:
        """Write what is to be learnt: this round's fixes after those of the rounds before."""
        config, seed = self.config, self.config.seed + number
        chats, pairs = self._path(number, "chats.jsonl"), self._path(number, "pairs.jsonl")

        def work() -> dict[str, Any]:
            with self._model(None) as before:
                fixes = make_fixes(
                    self._succeeded(number),
                    before,
                    self.plan.harmless,
                    self.plan.general,
                    self.plan.ways,
                    look_alikes=config.fix.look_alikes,
                    share_general=config.fix.general,
                    max_tokens=config.fix.answer_tokens,
                    seed=seed,
                )
            given = self._drawn(round(config.fix.general * fixes.counts["refused"]), seed)
            old = [read_written(self._path(number - 1, path.name)) if number > 1 else [] for path in (chats, pairs)]
            write_rows([*old[0], *fixes.chats, *given], chats)
            write_rows([*old[1], *fixes.pairs], pairs)
            return fixes.counts | {"given": len(given)}

        attack = self._path(number, "attack.json")
        self.stages.make(f"round {number}: fix", {}, [attack], lambda: [chats, pairs], work)
        counts = self.stages.made[f"round {number}: fix"]["metrics"]
        self.say(f"round {number}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))

    def _train(self, number: int) -> None:
        chats, pairs = self._path(number, "chats.jsonl"), self._path(number, "pairs.jsonl")
        made = list[Trained]()

        def work() -> dict[str, Any]:
            made.append(self.models.train(chats, pairs, self._path(number, ""), self.say))
            return {"loss": made[0].loss, "files": [str(path.relative_to(self.folder)) for path in made[0].files]}

        name = f"round {number}: train"
        self.stages.make(name, {}, [chats, pairs], lambda: made[0].files, work)
        metrics = self.stages.made[name]["metrics"]
        loss = metrics["loss"] and (metrics["loss"][0], metrics["loss"][1])
        self.trained.append(Trained([self.folder / path for path in metrics["files"]], loss))

    def _report(self, rounds: list[Measured], best: int, why: str) -> dict[str, Any]:
        trained = self.trained[best]
        report = {
            "model": self.config.model,
            "best": best,
            "files": [str(path) for path in trained.files] if trained else [],
            "stopped": why,
            "rounds": rounds,
            "changes": [compared(rounds[0], found, self.config.success) for found in rounds[1:]],
            "fixes": [self.stages.made[f"round {i}: fix"]["metrics"] for i in range(1, len(rounds))],
            "left out": self.plan.left_out,
            "judges": [judge.name for judge in self._judges()],
        }
        write_report(report, self.folder)
        return report

    def _succeeded(self, number: int) -> list[Attacked]:
        """The attacks of a round that succeeded, so many as are to be fixed."""
        config = self.config
        attacks = make_attacks(
            self.plan.fixing, self.plan.ways, per_prompt=config.fix.per_prompt, seed=config.seed + number
        )
        known = {attack.id: attack for attack in attacks}
        rows = json.loads(self._path(number, "attack.json").read_text("utf-8"))["succeeded"]
        rng = random.Random(f"{config.seed} {number}")
        kept = rng.sample(rows, min(config.fix.most or len(rows), len(rows)))
        return [Attacked(known[row["id"]], tuple(row["answers"])) for row in kept]

    def _judges(self) -> list[Judge]:
        """The judge that decides first."""
        if self.judge is None:
            return [RuleJudge()]
        asked = JournalledModel(self.judge, self.journal, f"judge {self.config.judge}")
        judges: list[Judge] = [RuleJudge(), ModelJudge(asked, self.judge.name)]
        return judges if self.config.decides == "rules" else judges[::-1]

    @contextmanager
    def _model(self, trained: Trained | None) -> Iterator[LanguageModel]:
        """A model with everything it ever answered remembered; opened when it is asked something new."""
        files = trained.files if trained else None
        with closing(LazyModel(self.config.model, lambda: self.models.open(files))) as model:
            yield JournalledModel(model, self.journal, self.models.identity(files))

    def _make(
        self, name: str, trained: Trained | None, outputs: list[Path], work: Callable[[], dict[str, Any]]
    ) -> None:
        self.stages.make(name, {}, trained.files if trained else [], lambda: outputs, work)

    def _drawn(self, count: int, seed: int) -> list[dict[str, Any]]:
        """So many of the general chats that were given."""
        chats = random.Random(f"{seed} chats").sample(self.chats, min(count, len(self.chats)))
        return [{"messages": chat.messages, "kind": "general", "id": chat.where} for chat in chats]

    def _add_losses(self, rounds: list[Measured]) -> None:
        """The loss of held-out chats, which training measures: the first model's is known once a round was trained."""
        for number, trained in enumerate(self.trained):
            if trained and trained.loss:
                rounds[0]["loss"], rounds[number]["loss"] = trained.loss

    def _path(self, number: int, name: str) -> Path:
        return self.folder / f"round-{number}" / name


def general_chats(config: BreakfixConfig, plan: Plan) -> list[Chat]:
    """The general chats to learn from. Raises PhialError as read_chats(), and where one is near what measures."""
    held = config.measure.chats
    held_out = [text for chat in read_chats([held]) for text in _asked(chat)] if held else []
    if config.fix.chats is None:
        return []
    chats = list(read_chats([config.fix.chats]))
    check_apart([text for chat in chats for text in _asked(chat)], [*plan.measuring, *held_out])
    return chats


def _asked(chat: Chat) -> list[str]:
    return [str(message["content"]) for message in chat.messages if message["role"] == "user"]


def _keep_config(config: BreakfixConfig, plan: Plan, folder: Path) -> None:
    """Write config.json, or hold it against the one that is there."""
    path = folder / CONFIG
    now = {"config": config.model_dump(mode="json", exclude=_FREE), "plan": plan.digest}
    try:
        known = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if there := [file for file in (folder / ANSWERS, folder / REPORT) if file.exists()]:
            raise PhialError(f"{folder} has {there[0].name} and no {CONFIG}", "use another folder") from None
        return write_json(path, now)
    except (OSError, ValueError) as error:
        raise PhialError(f"{path} cannot be read: {error}", "use another folder") from error
    if known != now:
        raise PhialError(f"{folder} holds a run of another configuration or other requests", "use another folder")
