"""Patterns from recipes and adapters: what may take forever is refused, what people write is not."""

from __future__ import annotations

import re
import time

import pytest

from stockpot._pattern_ways import require_bounded_on, ways
from stockpot._patterns import NAME_CHARACTERS, ForeverError, require_bounded

GOOD = (
    *(r"^model[.]layers[.](\d+)[.]self_attn[.](q|k|v)_proj", "norm", "layers.*weight$", r"^(?!.*norm).*[.]weight$", ""),
    *(r"(?:[.]\w+)*x", r"(\w+[.])*x", r"([^.]+[.])+weight", r"(?:model[.])?layers[.]\d+", "x{1,3}y?z?", "(foo|bar){3}"),
    *(
        ".*.*.*!",
        "(a+){1}",
        "(?P<n>a+)_(?P=n)",
        r"(?i:LAYERS)[.]\d{1,3}",
        "(a)?(?(1)b|c)",
        "[[a]",
        "\\w+?",
        "a|b|c",
        r"([.]\b\w+)*!",
    ),
    ".*layers.*mlp.*down.*weight.*",
)
FOREVER = (
    *("(a+)+$", r"(\w+[.]?)+$x", "([a-z_.0-9]+)*!", "(.*.*)*!", "(a|aa)*!", "(?:a?a)*b", "((a*)*)*", "(a?){30}a{30}"),
    *("(.*)" * n + "!" for n in (5, 7, 50)),
    *(
        "((a*){0,32}){0,32}",
        "(?=(a+)+$)",
        "(?:(?:a|b)+)*c",
        "(a{1,40})*!",
        r"(\w+\w)*!",
        r"(?:[^x]*[.])*!",
        "(?:x.*)*!",
        r"^model([.]\w*\w*)*[.]weight$",
        r"^([.]\w?\w?)*$",
        "^(xa*a*)*$",
        "(?i)^(xX*)*$",
        "(?i:^(k[A-Z]*)*$)",
        r"(?a:^(é[^\w]*)*$)",
    ),
)


@pytest.mark.parametrize("pattern", GOOD)
def test_what_people_write_is_taken(pattern: str) -> None:
    """Names with wildcards, numbers, alternatives; and they are quick on the worst name that we can think of."""
    require_bounded(pattern)
    began = time.process_time()
    for name in ("a" * NAME_CHARACTERS, ".a" * (NAME_CHARACTERS // 2), "layers.0." * 11, "q_proj" * 16):
        re.search(pattern, name)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("pattern", FOREVER)
def test_what_may_take_forever_is_refused(pattern: str) -> None:
    """Repeats in repeats, and many one after the other."""
    with pytest.raises(ForeverError, match="forever"):
        require_bounded(pattern)


def test_longer_names_allow_fewer_repeats() -> None:
    """Two repeats are fine on a hundred characters, not on a hundred thousand."""
    require_bounded(".*a.*b")
    with pytest.raises(re.error, match="100000 characters"):
        require_bounded(".*a.*b", 100_000)


@pytest.mark.parametrize("pattern", ["(x", "[", "*", "(?P<1>x)", "a{99999999999999999999}"])
def test_what_is_no_pattern(pattern: str) -> None:
    """The error of re stays what it is."""
    with pytest.raises((re.error, OverflowError)):
        require_bounded(pattern)


@pytest.mark.parametrize("pattern", GOOD)
def test_what_people_write_is_taken_on_the_longest_names(pattern: str) -> None:
    """Where names are known, what lies between the repeats counts: nothing that is quick is refused."""
    for name in ("model.layers.0.block." * 10, "m" * 800 + ".layers.0.mlp.down_proj.weight", "layers." * 20):
        if pattern != ".*.*.*!":
            require_bounded_on(pattern, name)
        began = time.process_time()
        re.search(pattern, name[:300])
        assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (".*.*.*!", "a" * 300),
        (".*a.*a.*a!", "a" * 300),
        ("(.*)(.*)x(.*)!", "ax" * 200),
        ("(?:.*){4}!", "a" * 200),
        ("(a|.)*a.*a!", "a" * 900),
        (r"([.]\w+)*.*.*!", ".a" * 400),
        ("(?i:A*a*a*)A!", "a" * 400),
        ("(?=.*.*.*!)b", "a" * 300),
        ("(x)?(?(1)a|.*.*.*)!", "a" * 300),
    ],
)
def test_what_may_take_forever_on_a_long_name_is_refused_when_the_name_is_known(pattern: str, name: str) -> None:
    """Names may have a thousand characters, ten times those for which patterns are judged before."""
    if pattern != "(a|.)*a.*a!":
        require_bounded(pattern, 20)
    with pytest.raises(ForeverError, match="forever"):
        require_bounded_on(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("a", "ab", 1),
        ("ab", "abab", 4),
        ("a*b", "aa", 6),
        ("^a*b", "aa", 4),
        ("(?:a|bb)c", "ab", 3),
        ("a{2}b", "aaa", 7),
    ],
)
def test_ways_counted_by_hand(pattern: str, name: str, expected: int) -> None:
    """Each place from which, and each to which, an item is tried with success."""
    assert ways(pattern, name) == expected
