"""Answers that mathematics reads as less than they say: times, dates, units, letters, words.

To math-verify, 6:30 a.m. and 6:30 p.m. are 6:30, and 5 cm and 5 m are 5.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from fractions import Fraction
from functools import cache

_TEXT = re.compile(r"\\(?:text\w*|math(?:rm|bf|it|sf|tt)|mbox|operatorname)\s*\{([^{}]*)\}")
_BLANK = re.compile(r"\\(?:left|right|quad|[ ,;:!])(?![a-zA-Z])|[~\s]+|(?<!\\)\$")


def plain_latex(text: str) -> str:
    """Return LaTeX without the commands that only set it.

    >>> plain_latex(r"$6{:}30\\,\\text{ a.m.}$")
    '6:30 a.m.'
    """
    for _ in range(3):
        text = _TEXT.sub(r" \1 ", text)
    text = re.sub(r"\{([,:])\}", r"\1", text).replace("−", "-")
    return " ".join(_BLANK.sub(" ", text).replace("\\$", "$").split()).strip(" *")


_TIME = re.compile(
    r"(?i)(?:at )?(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?\s*(?:o'clock)?\s*"
    r"(?:(a|p)\.?\s?m\.?|in the (morning|afternoon|evening))?"
)
_NAMED = {"noon": 720 * 60, "midnight": 0}


def _time(text: str) -> tuple[int, bool] | None:
    """Return a time of day in seconds, and whether it says which half of the day it is of."""
    if text.lower().removeprefix("12 ").rstrip(".") in _NAMED:
        return _NAMED[text.lower().removeprefix("12 ").rstrip(".")], True
    found = _TIME.fullmatch(text)
    if not found or not any(found.group(2, 4, 5)):
        return None
    hour, minute, second = (int(each or 0) for each in found.group(1, 2, 3))
    half = (
        found[4] or {"m": "a"}.get((found[5] or " ")[0].lower(), "p" if found[5] else "")
    ).lower()
    if minute > 59 or second > 59 or hour > (12 if half else 24):
        return None
    hour = hour % 12 + 12 * (half == "p") if half else hour
    return (hour * 60 + minute) * 60 + second, bool(half) or hour > 12


_MONTHS = [name.lower() for name in calendar.month_name if name]
_DATES = (
    re.compile(r"(?P<m>[a-z]{3,9})\.? (?P<d>\d{1,2})(?:st|nd|rd|th)?(?:,? (?P<y>\d{4}))?"),
    re.compile(r"(?:the )?(?P<d>\d{1,2})(?:st|nd|rd|th)?(?: of)? (?P<m>[a-z]{3,9})\.?"
               r"(?:,? (?P<y>\d{4}))?"),
    re.compile(r"(?P<y>\d{4})-(?P<m>\d{2})-(?P<d>\d{2})"),
)  # fmt: skip


def _date(text: str) -> tuple[str | None, int, int] | None:
    """Return year, where it is said, month and day."""
    text = re.sub(r"^(?:on )?(?:[a-z]{3,6}day,? )?", "", text.lower().rstrip("."))
    for form in _DATES:
        if found := form.fullmatch(text):
            named = [n for n, name in enumerate(_MONTHS, 1) if name.startswith(found["m"])]
            month = int(found["m"]) if found["m"].isdecimal() else named[0] if named else 0
            if 1 <= month <= 12 and 1 <= int(found["d"]) <= 31:
                return found["y"], month, int(found["d"])
    return None


_UNITS = {
    "length": "mm millimeter 0.001, cm centimeter 0.01, m meter 1, km kilometer 1000, in inch "
              "inches 0.0254, ft foot feet 0.3048, yd yard 0.9144, mi mile 1609.344",
    "time": "ms millisecond 0.001, s sec second 1, min minute 60, h hr hour 3600, day 86400, "
            "week 604800",
    "age": "month 1, yr year 12",
    "mass": "mg milligram 0.001, g gram 1, kg kilogram 1000, lb pound 453.59237, oz ounce "
            "28.349523125, ton tonne 1000000",
    "volume": "ml milliliter 0.001, l liter 1",
    "money": "$ dollar 100, ¢ cent 1",
}  # fmt: skip
"""Kinds of units, and for each unit its names and its size; English plurals are known."""


@cache
def _units() -> dict[str, tuple[str, Fraction]]:
    return {
        name: (kind, Fraction(size))
        for kind, line in _UNITS.items()
        for *names, size in (each.split() for each in line.split(","))
        for name in names
    }


_UNIT = re.compile(
    r"(?P<word>(?:square|cubic|sq\.?|cu\.?)? ?(?:[a-zA-Z]+|[$¢]))\.?"
    r" ?(?:\^? ?\{?(?P<power>[23²³])\}?)?(?: ?(?:/| per ) ?(?P<per>[a-zA-Z]+)\.?"
    r" ?(?:\^? ?\{?(?P<below>[23²³])\}?)?)?"
)
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)")
_POWERS = {"2": 2, "3": 3, "²": 2, "³": 3, None: 1}


def _unit(text: str) -> tuple[str, Fraction] | None:
    """Return the dimension of a unit, and its size; None for what is none.

    >>> _unit("km/h")
    ('length/time', Fraction(5, 18))
    """
    found = _UNIT.fullmatch(text.strip())
    if not found:
        return None
    *how, word = found["word"].split()
    power = {"s": 2, "c": 3}[how[0][0]] if how else _POWERS[found["power"]]
    above, below = _one(word), _one(found["per"]) if found["per"] else ("", Fraction(1))
    if above is None or below is None:
        return None
    root = _POWERS[found["below"]]
    kind = "*".join([above[0]] * power) + "".join(["/" + below[0]] * root * bool(below[0]))
    size = above[1] ** power / below[1] ** root
    # A litre is a cube of a tenth of a metre.
    kind, size = (
        kind.replace("length*length*length", "volume"),
        (size * 1000 if kind == "length*length*length" else size),
    )
    return kind, size


def _one(word: str) -> tuple[str, Fraction] | None:
    known = _units()
    word = word.replace("metre", "meter").replace("litre", "liter")
    for name in (word, word.lower(), word.lower().removesuffix("s")):
        if name in known:
            return known[name]
    return None


def _quantity(text: str) -> tuple[str, list[tuple[str, Fraction]]] | None:
    """Return dimension, and numbers with the sizes of their units: `2 hours 30 minutes`."""
    text = re.sub(r"^([-+]?) ?\$ ?([\d.,]+)$", r"\1\2 $", text.rstrip("."))
    parts = re.findall(rf"({_NUMBER.pattern}) ?([a-zA-Z]+)(?:,? and |, | |$)", text)
    if len(parts) > 1 and re.sub(r"[\s,]|and", "", text) == "".join(n + u for n, u in parts):
        units = [_unit(unit) for _, unit in parts]
    else:
        at = re.match(r"(.*[\d})]) ?([a-zA-Z$¢][^\d{]*(?:\^?\{?[23²³]\}?)?)$", text)
        if at is None or at[1].endswith(("^", "_")) or re.search(r"[a-zA-Z)}] ?[-+]", at[1]):
            return None  # the last one is an expression, as 3m + 2s
        at = at if _unit(at[2]) else re.match(r"(.*?[\d})]) ?([a-zA-Z].*)$", text)
        parts, units = ([(at[1], at[2])], [_unit(at[2])]) if at else ([], [])
    kinds = {unit and unit[0] for unit in units}
    if len(kinds) != 1 or None in kinds:
        return None
    sizes = [unit[1] for unit in units if unit]
    numbers = [number for number, _ in parts]
    return str(kinds.pop()), list(zip(numbers, sizes, strict=True))


_BASED = re.compile(r"\(?([0-9a-zA-Z]+)\)?_ ?\{? ?(\d\d?) ?\}?")


def _based(text: str) -> int | None:
    """Return the number that is written to a base, as `1011_2`."""
    found = _BASED.fullmatch(text)
    try:
        return int(found[1], int(found[2])) if found else None
    except ValueError:  # a digit that the base lacks, or x_1
        return None


def same_plainly(answer: str, given: str, same: Callable[[str, str], bool]) -> bool | None:
    """Whether two times, dates, quantities, words or letters are the same; None for other answers.

    Args:
        same: compares numbers, as LaTeX.

    >>> same_plainly("6:30 a.m.", r"6:30 \\text{ p.m.}", str.__eq__)
    False
    """
    one, other = plain_latex(answer), plain_latex(given)
    first, second = _time(one), _time(other)
    if first and second:
        if not (first[1] or second[1]):
            return None
        half = 12 * 3600
        return first[0] == second[0] if first[1] and second[1] else (
            first[0] % half == second[0] % half
        )  # fmt: skip
    dates = _date(one), _date(other)
    if dates[0] and dates[1]:
        years = {date[0] for date in dates if date} - {None}
        return dates[0][1:] == dates[1][1:] and len(years) < 2
    numbers = _based(one), _based(other)
    if None not in numbers:
        return numbers[0] == numbers[1]
    letter = re.fullmatch(r"\(?([A-J])\)?\.?", one)
    chosen = re.match(r"\(?([A-J])(?:[).:]\)?(?:\s.*)?)?$", other)
    if letter and chosen:
        return letter[1] == chosen[1]
    if one.casefold().strip(".") == other.casefold().strip(".") and re.fullmatch(r"[^\W\d].*", one):
        return True
    sizes = _quantity(one), _quantity(other)
    if sizes[0] and sizes[1]:
        if sizes[0][0] != sizes[1][0]:
            return False
        summed = [
            " + ".join(rf"({number}) \cdot \frac{{{size.numerator}}}{{{size.denominator}}}"
                       for number, size in each[1])
            for each in sizes if each
        ]  # fmt: skip
        return same(*summed)
    if any(sizes) and "/" in (one if sizes[0] else other):
        only = sizes[0] or sizes[1]
        number = other if sizes[0] else one
        if only and re.search(r"\d", number) and not re.search(r"[a-zA-Z]{2}", number):
            return same(only[1][0][0], number)
    return None
