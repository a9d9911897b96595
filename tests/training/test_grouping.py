"""Which prompts are one, and on which side of the split they stand, now and later."""

from __future__ import annotations

import random
from typing import Any

import pytest

from app.training.grouping import fingerprint, groups, similarity
from app.training.splitting import History, held_out, rank, scales

LONG = (
    "Write a letter to the council of the town in which I live and ask them, politely but firmly, to repair the bridge over"
    " the river before the winter begins, because children cross it every morning on their way to school"
)


def asked(text: str, system: str = "") -> list[dict[str, Any]]:
    user = {"role": "user", "content": text}
    return [{"role": "system", "content": system}, user] if system else [user]


def grouped(*prompts: list[dict[str, Any]], threshold: float = 0.9) -> list[str]:
    return groups([fingerprint(each) for each in prompts], lambda number: prompts[number], threshold)


SAME = [
    ("What does ls do?", "what does  LS do"),
    ("What does ls do?", "“What does ls do”"),
    ("What does ls do?", "What does ls do, please?"),
    ("Hello! What does ls do?", "What does ls do? Thanks"),
    ("\ufb01le sizes", "file sizes"),
    ("caf\u00e9", "cafe\u0301"),
    (LONG, LONG.replace("the bridge", "that bridge")),
]
APART = [
    ("What does ls do?", "What does cp do?"),
    ("What does mount do?", "What does umount do?"),
    ("What is 2 + 3?", "What is 2 + 4?"),
    ("Convert 1.5 km", "Convert 15 km"),
    ("What is C?", "What is C++?"),
    ("What is C#?", "What is C++?"),
    ("Is it legal?", "Is it not legal?"),
    ("Who is Ada?", "Where is Ada?"),
    ("Does Ann love Bob?", "Does Bob love Ann?"),
    ("Convert 5 miles to km", "Convert 5 km to miles"),
    (LONG, LONG.replace("winter", "summer")),
    (LONG, LONG.replace("bridge", "fridge")),
    ("ls -l", "ls -a"),
    ("¿Qué hora es?", "¿Qué día es?"),
    ("你好吗", "你是谁"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_these_are_one(first: str, second: str) -> None:
    assert len(set(grouped(asked(first), asked(second)))) == 1


@pytest.mark.parametrize(("first", "second"), APART)
def test_these_stay_apart(first: str, second: str) -> None:
    assert len(set(grouped(asked(first), asked(second)))) == 2


def test_templates_that_differ_in_a_word_are_a_group_each() -> None:
    prompts = [
        asked(f"Could you please explain to me in simple words what the command {name} does on Linux?") for name in range(300)
    ]
    assert len(set(grouped(*prompts))) == 300


def test_the_system_text_counts_but_a_date_in_it_does_not() -> None:
    system = "You are the assistant of the town library and answer in one sentence. Today is the {} of November."
    assert len(set(grouped(asked("hi there", system.format(3)), asked("hi there", system.format(4))))) == 1
    assert len(set(grouped(asked("bank", "Translate into French"), asked("bank", "Translate into Spanish")))) == 2


def test_a_group_keeps_its_name_as_others_join() -> None:
    first, alike, other = asked(LONG), asked(LONG.replace("the bridge", "that bridge")), asked("other")
    assert grouped(first)[0] == grouped(first, alike)[1] == grouped(first, other, alike)[0]


def test_similarity_is_symmetric_and_bounded() -> None:
    for first, second in [*SAME, *APART]:
        value = similarity(asked(first), asked(second))
        assert value == similarity(asked(second), asked(first))
        assert 0 <= value <= 1


def test_many_variants_of_the_same_words_end() -> None:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    chance = random.Random(3)
    prompts = [asked(" ".join(chance.sample(words, len(words)))) for _ in range(1000)]
    assert len(grouped(*prompts)) == 1000


def names(count: int, start: int = 0) -> set[str]:
    return {f"{number:032x}" for number in range(start, start + count)}


@pytest.mark.parametrize("count", [5, 6, 7, 10, 12, 21, 48, 100])
def test_at_least_a_fifth_of_the_groups_is_held_out(count: int) -> None:
    for seed in range(20):
        held = held_out({"sft": names(count)}, share=0.2, seed=seed, history=History())
        assert len(held) >= -(-count // 5)
        assert len(held) < count * 0.8


def test_every_kind_has_its_share() -> None:
    kinds = {"sft": names(30), "dpo": names(7, 100), "kto": names(50, 20)}
    held = held_out(kinds, share=0.2, seed=0, history=History())
    for kind in kinds.values():
        assert len(kind & held) >= -(-len(kind) // 5)


def test_few_groups_are_not_forced_apart() -> None:
    assert len(held_out({"sft": names(4)}, share=0.2, seed=1, history=History())) <= 2
    assert held_out({}, share=0.2, seed=1, history=History()) == set()


def test_what_was_held_out_once_is_never_trained_on_later() -> None:
    """Groups come and go over forty snapshots, with changing shares and seeds."""
    chance = random.Random(9)
    held_ever: set[str] = set()
    trained_ever: set[str] = set()
    alive = names(20)
    for step in range(40):
        alive = {group for group in alive if chance.random() > 0.1} | names(chance.randrange(20), 1000 * (step + 1))
        history = History(heldout=held_ever, trained=trained_ever)
        held = held_out({"sft": alive}, share=chance.choice([0.1, 0.2, 0.3]), seed=step % 3, history=history)
        assert alive & held_ever <= held
        held_ever |= held
        trained_ever |= alive - held
        again = held_out({"sft": alive}, share=0.1, seed=step % 3, history=History(heldout=held_ever, trained=trained_ever))
        assert alive & held <= again


def test_the_rest_of_the_split_does_not_move_as_groups_are_added() -> None:
    few, many = names(500), names(1000)
    first = held_out({"sft": few}, share=0.2, seed=0, history=History())
    later = held_out({"sft": many}, share=0.2, seed=0, history=History(heldout=first, trained=few - first))
    moved = (later & few) - first
    assert not {group for group in moved if rank(group, 0) >= 0.2} or len(moved) <= 10
    assert first <= later


def test_nobody_has_more_than_the_cap_where_there_are_enough_people() -> None:
    rows = {"loud": 1000, **{f"p{number}": 20 for number in range(9)}}
    scale = scales(rows, most=0.25, floor=40)
    total = sum(rows[name] * scale[name] for name in rows)
    assert rows["loud"] * scale["loud"] / total == pytest.approx(0.25)
    assert {scale[name] for name in rows if name != "loud"} == {1.0}


@pytest.mark.parametrize("rows", [{"a": 48}, {"a": 20, "b": 20}, {"a": 5, "b": 5, "c": 5}, {"a": 3, "b": 2}, {}])
def test_few_people_or_rows_are_not_capped(rows: dict[str, int]) -> None:
    assert set(scales(rows, most=0.25, floor=16).values()) <= {1.0}


def test_the_cap_gives_way_to_the_floor() -> None:
    scale = scales({"admin": 45, "a": 1, "b": 1, "c": 1}, most=0.25, floor=16)
    assert 45 * scale["admin"] + 3 == pytest.approx(16)


def test_the_cap_holds_for_random_crowds() -> None:
    chance = random.Random(4)
    for _ in range(300):
        rows = {str(number): chance.choice([1, 5, 50, 500]) for number in range(chance.randint(4, 30))}
        scale = scales(rows, most=0.3, floor=0)
        weights = [rows[name] * scale[name] for name in rows]
        assert max(weights) <= 0.3 * sum(weights) * (1 + 1e-9)
        assert all(0 < value <= 1 for value in scale.values())
