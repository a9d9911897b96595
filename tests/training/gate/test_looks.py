"""What is told of a text by looking at it, the likeness of two texts, the guards' frozen prompts, and the page."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import EngineUnavailable
from app.core.ids import uuid7
from app.core.types import GenerationRequest, Message, ModelSpec
from app.training.folders import Folders, write_json
from app.training.gate.evidence import Guard, Unmeasured
from app.training.gate.guards import guard_set
from app.training.gate.parity import Item, Parity
from app.training.gate.report import STYLE, STYLE_HASH, page
from app.training.gate.similarity import similarity
from app.training.gate.traits import TONE, answers_in, is_degenerate, is_json, is_refusal, language
from app.training.gate.verdict import judge_guard
from tests.training.gate.doubles import FakeModels, MemoryAttempts, scene
from tests.training.gate.test_judge import corrections, gate, house


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The cat is on the table and it sleeps.", "en"),
        ("El gato está en la mesa y duerme con los perros.", "es"),
        ("Le chat est sur la table et dort avec les chiens.", "fr"),
        ("Die Katze ist auf dem Tisch und schläft nicht.", "de"),
        ("猫は机の上で眠っています。", "ja"),
        ("今天天气很好", "zh"),
        ("Кошка спит на столе", "ru"),
        ("Paris.", None),
        ("", None),
        ("12 34", None),
    ],
)
def test_language(text: str, code: str | None) -> None:
    assert language(text) == code
    assert answers_in(text, code)


def test_refusals() -> None:
    assert is_refusal("I'm sorry, but I can't help with that.")
    assert is_refusal("As an AI language model, I have no opinion.")
    assert is_refusal("Lo siento, pero no puedo ayudar con eso.")
    assert not is_refusal("Sure: first take an onion.")
    assert not is_refusal("Sorry to hear that you had a long day.")


def test_degeneration() -> None:
    assert is_degenerate("")
    assert is_degenerate("the cat and the dog, " * 6)
    assert is_degenerate("aaaaaaaaaaaaaaaaaaaaaaaaaa")
    assert not is_degenerate("The workshop is open from eight to nine, every day but Monday.")
    assert not is_degenerate("| --- | --- |\n--------------------------")
    assert not is_degenerate("😀")


def test_json() -> None:
    assert is_json('{"a": 1}')
    assert is_json('Here it is:\n```json\n{"a": [1, 2]}\n```\nDone.')
    assert not is_json('"text"')
    assert not is_json('{"a": 1')
    assert not is_json("[" * 5000)


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [
        ("impersonal", "The shop is open.", "I think the shop is open."),
        ("impersonal", "La tienda está abierta.", "Yo creo que está abierta."),
        ("exclamation", "Great!", "Great."),
        ("emoji", "Fine 🎉", "Fine"),
        ("politeness", "Of course, with pleasure.", "Of the course nothing is known."),
        ("formatting", "- one\n- two", "one - two"),
        ("formatting", "This is **bold**.", "2 ** 3 ** 4"),
    ],
)
def test_tone(name: str, yes: str, no: str) -> None:
    assert TONE[name](yes)
    assert not TONE[name](no)


@pytest.mark.parametrize(
    ("one", "better", "worse"),
    [
        ("Open from 7:30 to 21:00.", "Open from 7:30 until 21:00.", "Open from 9:30 until 18:00."),
        ("THE SHOP IS OPEN", "THE SHOP IS CLOSED", "the shop is open later today"),
        ("店は九時に開きます", "店は九時に開く", "今日はいい天気です"),
        ("Ask Tomas at the desk.", "Ask Tomas.", "I do not know."),
    ],
)
def test_similarity_ranks(one: str, better: str, worse: str) -> None:
    assert similarity(one, one) == 1.0
    assert similarity(one, better) > similarity(one, worse) + 0.05


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300), st.text(max_size=300))
def test_looking_never_raises(one: str, other: str) -> None:
    assert 0 <= similarity(one, other) <= 1
    assert similarity(one, other) == pytest.approx(similarity(other, one))
    for test in (*TONE.values(), is_refusal, is_degenerate, is_json):
        assert test(one) in (True, False)
    language(one)


def test_the_frozen_prompts() -> None:
    frozen = guard_set()
    kinds = Counter(prompt.kind for prompt in frozen.prompts)
    assert sum(kinds[kind] for kind in ("fact", "instruction", "chat", "harmless", "harmful")) >= 48
    assert Counter(prompt.lang for prompt in frozen.prompts) == {"en": 32, "es": 32}
    assert all(prompt.expect for prompt in frozen.prompts if prompt.kind in ("fact", "tool"))
    assert all(language(text.completion) == text.lang for text in frozen.texts)
    digest = hashlib.sha256(Path("app/training/gate/guard_prompts.json").read_bytes()).hexdigest()
    assert digest.startswith(_FROZEN), "a change makes old reports incomparable: change this line with it, and say so"


_FROZEN = "9d5ac743935807aa"


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


async def test_the_page_loads_and_runs_nothing(tmp_path: Path) -> None:
    place = scene(tmp_path, corrections(), corrections(40))
    await gate(FakeModels(new=house), place, MemoryAttempts()).judge(place.run, place.snapshot, place.folder)
    text = (place.folder / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert not tags.names & {"script", "link", "img", "iframe", "form", "a", "object", "base"}
    assert "style" not in tags.attributes, "a policy with a hash allows no style attributes"
    assert not [name for name in tags.attributes if name.startswith("on") or name in ("src", "href")]
    assert "url(" not in text
    assert "@import" not in text
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert style.group(1) == STYLE
    assert "sha256-" + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode() == STYLE_HASH
    assert "prefers-color-scheme" in STYLE
    assert "width=device-width" in text
    for words in ("This version may be promoted", "What the tries cost", "<svg"):
        assert words in text


def test_a_page_without_a_test() -> None:
    report: dict[str, Any] = {
        "verdict": "fail",
        "summary": "Refused: gain.",
        "checks": [
            {"name": "gain", "value": None, "interval": None, "bound": None, "passed": False, "detail": "<b>Nothing</b>"}
        ],
        "attempt": {"number": 1, "alpha": 0.02, "p_value": 1.0, "fresh_only": False, "budget": 0.033},
        "versions": {"candidate": "c", "current": "d"},
        "run": "r",
        "method": "sft",
        "primary": None,
        "guards": [],
        "sampled": dict.fromkeys(
            ("held_out_rows", "held_out_groups", "judged_rows", "judged_groups", "not_comparable", "skipped", "people"), 0
        ),
        "history": [],
        "judged_at": "now",
        "seconds": 1.0,
    }
    assert "&lt;b&gt;Nothing" in page(report, [])


# --- parity

_CHILD = """
import json, sys
request = json.load(open(sys.argv[1]))
mode = {mode!r}
if mode == "fails": sys.exit(2)
if mode == "dies":
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
off = {{"": 3.0 if mode == "differs" else 0.05, **dict.fromkeys(request["adapters"], 2.0 if mode == "differs" else 0.08)}}
scores = {{name: [{{"logprob": -3.0 - 3 * d, "tokens": [1, 2, 3, 4], "logprobs": [-1 - d] * 4}} for _ in request["items"]]
          for name, d in off.items()}}
json.dump({{"template_hash": "t" if mode != "template" else "u", "dtype": "float32", "scores": scores}}, open(sys.argv[2], "w"))
"""


async def measured(tmp_path: Path, mode: str, old: ModelSpec | None = None) -> list[Guard]:
    folders, name = Folders(tmp_path), uuid7()
    folder = folders.run(name)
    folder.mkdir(parents=True)
    write_json(folder / "job.json", {"base": {"path": "x"}, "threads": 1})
    items = [Item(GenerationRequest((Message("user", "a"),)), "b", (-1.0,) * 3, (-1.0,) * 3)] * 3
    parity = Parity(folders, command=(sys.executable, "-c", _CHILD.format(mode=mode)))
    try:
        return await parity.measure(
            folder, items, old=old or ModelSpec("p", "m"), new=ModelSpec("p", "m", "auto", name), template="t"
        )
    finally:
        assert [path.name for path in folder.iterdir()] == ["job.json"]


@pytest.mark.parametrize(
    ("mode", "passes"), [("agrees", [True, True]), ("differs", [False, True]), ("template", [True, False]), ("fails", [False])]
)
async def test_parity(tmp_path: Path, mode: str, passes: list[bool]) -> None:
    assert [judge_guard(guard).passed for guard in await measured(tmp_path, mode)] == passes


async def test_a_current_version_of_another_base_excuses_nothing(tmp_path: Path) -> None:
    """Its adapter does not fit the base that was trained, so the trained side is not even asked for it."""
    for number, (mode, passes) in enumerate((("agrees", [True, True]), ("differs", [False, True]))):
        guards = await measured(tmp_path / f"{number}", mode, ModelSpec("p", "other", adapter="no id of a run"))
        assert [judge_guard(guard).passed for guard in guards] == passes


async def test_a_killed_child_can_be_asked_again(tmp_path: Path) -> None:

    with pytest.raises(EngineUnavailable):
        await measured(tmp_path, "dies")


async def test_parity_without_the_runs_record(tmp_path: Path) -> None:
    spec = ModelSpec("p", "m")
    (guard,) = await Parity(Folders(tmp_path)).measure(tmp_path, [], old=spec, new=spec, template="t")
    assert isinstance(guard, Unmeasured)
    assert not guard.passes
