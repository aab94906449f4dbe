"""Mutations of JSON that stay JSON, nearly: objects are lists of pairs, so that a key can stand twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any


class Pairs(list[Any]):
    """An object: lists of a key and a value."""


class Raw(str):
    """Text that is put as it is, JSON or not."""

    __slots__ = ()


VALUES: Sequence[Any] = (
    *(0, 1, -1, 2, 3, 4, 8, 255, 65, 1 << 31, 1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30),
    *(0.5, -0.0, 1e308, True, False, None, "", "a", "w", ".", "..", "../x", "/etc/passwd", "a\0b", "\x1b[2J", "\u202e"),
    *(Raw("NaN"), Raw("Infinity"), Raw("1e999"), Raw("-"), Raw('"\\ud800"'), Raw('"\\u0000"'), Raw("9" * 5000)),
    *(Raw("[" * 2000), Raw("[]"), Raw("{}"), Raw("[[]]"), Raw('{"a":1,"a":1}'), Raw("1.0"), Raw("01"), Raw("\xff")),
)


def parse(text: bytes) -> Any:
    """The tree of a JSON text; ValueError or RecursionError where it is none."""
    return json.loads(text.decode("utf-8"), object_pairs_hook=lambda pairs: Pairs(map(list, pairs)))


def dump(tree: Any) -> str:
    """JSON of a tree."""
    if isinstance(tree, Pairs):
        return "{" + ",".join([f"{_key(pair[0])}:{dump(pair[1])}" for pair in tree]) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(map(dump, tree)) + "]"
    return tree if isinstance(tree, Raw) else json.dumps(tree)


def _key(key: Any) -> str:
    return key if isinstance(key, Raw) else json.dumps(key if isinstance(key, str) else str(key))


def slots(tree: Any) -> list[tuple[list[Any], int]]:
    """Every place in a tree, of a pair in an object too: (list that holds it, index)."""
    found: list[tuple[list[Any], int]] = []
    rest = [tree]
    while rest:
        for place, value in enumerate(holder := rest.pop()):
            found.append((holder, place))
            if isinstance(value, list):
                rest.append(value)
    return found


def mutate_tree(tree: Any, random: Random, values: Sequence[Any] = VALUES) -> Any:
    """One to four changes at random places."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 4))):
        places = slots(tree) if isinstance(tree, list) else []
        if not places:
            return random.choice(values)
        holder, place = random.choice(places)
        other, there = random.choice(places)
        if isinstance(holder, Pairs):
            _change_object(holder, place, other[there] if isinstance(other, Pairs) else None, random)
        elif random.random() < 0.2 and not isinstance(other, Pairs):
            holder[place] = copied(other[there])
        else:
            _change_value(holder, place, random, values)
    return tree


def _change_object(holder: Pairs, place: int, other: list[Any] | None, random: Random) -> None:
    """A pair taken out, put in twice, or another one beside it."""
    chance = random.random()
    if chance < 0.4:
        del holder[place]
    elif chance < 0.7:
        holder.insert(random.randrange(len(holder) + 1), copied(other or holder[place]))
    elif chance < 0.9:
        fresh = copied(holder[place])
        fresh[0] = random.choice((f"{fresh[0]}x", f"x.{fresh[0]}", "w", "\0", "", "__metadata__"))
        holder.append(fresh)
    else:
        random.shuffle(holder)


def _change_value(holder: list[Any], place: int, random: Random, values: Sequence[Any]) -> None:
    """Another value, or the same a little moved; a list's items come and go."""
    value, chance = holder[place], random.random()
    if chance < 0.35:
        holder[place] = random.choice(values)
    elif chance < 0.6 and isinstance(value, int | float):
        holder[place] = random.choice((value + 1, value - 1, value * 2, -value, value + 8, value // 2, value * 4096))
    elif chance < 0.6 and isinstance(value, str):
        holder[place] = random.choice((value + "x", value[:-1], value * 2, "x." + value, value.swapcase()))
    elif chance < 0.75 and isinstance(value, list) and not isinstance(value, Pairs) and value:
        value.insert(random.randrange(len(value) + 1), copied(random.choice(value)))
    elif chance < 0.9 and isinstance(value, list) and value:
        del value[random.randrange(len(value))]
    elif chance < 0.95:
        holder[place] = [value]
    else:
        holder[place] = Pairs([["a", value]])


def copied(value: Any) -> Any:
    """A tree that shares no list with this one."""
    return type(value)(map(copied, value)) if isinstance(value, list) else value


def mutate_json(text: bytes, random: Random, values: Sequence[Any] = VALUES) -> bytes | None:
    """Another JSON text; None where this one is none."""
    try:
        return dump(mutate_tree(parse(text), random, values)).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError, OverflowError):
        return None
