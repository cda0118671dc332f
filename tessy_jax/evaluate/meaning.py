"""The meaning of a final answer: one value, or something else ("12 or 13", "about 12", "more than 12", "12 is wrong").

A value may have a unit or a currency, stand at an end of an equation, or be a number word. Rejected values do not count. A
text with several values, a bound or an approximate value has no value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from tessy_jax.evaluate.readings import AROUND, LONG, LONGEST, decimal, normalised, plain, same, value

EQUALS = re.compile(r"(?<![<>!:=/])=(?![=/])")
ARITHMETIC = re.compile(r"(?:[0-9+\-*/^{}(). ]|\\(?:cdot|times|frac|sqrt|pi)(?![a-z]))+", re.ASCII)
"""A side of an equation that only shows the calculation."""
NAMED = re.compile(r"[\s$]*[a-zA-Z]\s*=([^=<>]+)", re.ASCII)
"""A right answer that names its unknown."""
PRODUCT = re.compile(r"[+-]?[0-9.]+ ?[a-z]", re.ASCII)
"""The left side of an equation that has yet to be solved, such as 2x = 10."""
POWER_OF_UNIT = r"(?:\^\{?-?[0-9]\}?)?"
UNIT = re.compile(
    r"(.*[0-9}])(?: (?=[a-z])|(?=\^|\\\^))"
    rf"((?:\^\{{?\\circ\}}? ?[cfk]?|[a-z]+(?:/[a-z]+)*{POWER_OF_UNIT})(?: [a-z]+(?:/[a-z]+)*{POWER_OF_UNIT}){{0,2}})",
    re.DOTALL,
)
COUNTER = re.compile(r"(.*[0-9]) ?[぀-ヿ一-鿿가-힣]{1,6}", re.DOTALL)
"""A number and a word of a script that does not separate words."""
CHANGING_COUNTERS = frozenset("万亿億千百十半倍分之以多余几约左右上下間至到或和不")
CURRENCY = re.compile(r"([+-]?) ?(?:[$€£¥₹]|(?:usd|eur|gbp|us\$) ?)(?=[0-9.])|(?<=[0-9]) ?[€£¥₹]$")
ONE_LETTER_UNITS = frozenset("mgslhcf")
NO_UNITS = frozenset(
    re.findall(
        r"\w+",
        "and or to not minus plus times over mod base root power hundred thousand million billion trillion dozen "
        "percent half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths eighth eighths "
        "tenth tenths hundredths squared cubed factorial pi sqrt hundreds thousands millions billions dozens "
        "is are was were wrong false incorrect impossible less more fewer lower higher greater larger smaller below above "
        "least most approximately roughly about around so ago negative positive lakh crore bn mn if for when where while "
        "with unless but maybe perhaps possibly choose etc fold double doubled tripled percentage percents in of from until "
        "excluded too modulo divided multiplied raised nothing none unknown undefined thousandths",
    )
)
"""Words after a number that change its value or say that it is not the answer."""
NOT_BUT = re.compile(r"\bnot\s+(?:\S+\s+){1,4}?but\s+(?:rather\s+)?|不是 ?[0-9]+ ?[,;]? ?(?:而)?是 ?", re.IGNORECASE)
NOT_THAT = re.compile(r"(?:\s*[,;(]+\s*|\s)(?:not|rather than|instead of)\s.*", re.IGNORECASE | re.DOTALL)
WRONG = re.compile(
    r"[^\s,;(]+\s+(?:is|was)\s+(?:clearly\s+)?(?:wrong|incorrect|false|impossible|not\b[^,;.]*)[.,;:]?\s*"
    r"(?:(?:so|but|and)\s+)?(?:(?:it|the answer)\s+is\s+|it's\s+)?",
    re.IGNORECASE,
)
TAIL = re.compile(
    r"\.\s+(?=[A-Z(])|[,;]\s+(?:since|because|as|which|so|hence)\s|\s+(?:since|because)\s|\s+\((?=[a-z])(?!mod\b)[^()0-9]*\)$"
)
"""The end of a statement within a line."""
RETRACTED = re.compile(r"\b(?:wait|no|actually|but|however|correction|or|rather|wrong|incorrect|if|unless)\b", re.IGNORECASE)
JOINED = re.compile(
    r"(?<![a-z])(?:or|and|if|when|where|for|else|unless|while|with)(?![a-z])|,(?![0-9])|;|\\(?:approx|pm|ne|neq|sim)(?![a-z])"
)
"""Parts of a text that give an equation more than one value or a condition."""
QUALIFIED = re.compile(
    r"(?<![a-z])(?:hundred|thousand|million|billion|trillion|dozen|lakh|crore|about|approximately|approx|roughly|nearly"
    r"|almost|at least|at most|or (?:more|less|fewer)|(?:more|less|fewer|greater|larger|smaller) than|is wrong|is incorrect"
    r"|is false|not|between|neither|except)(?![a-z])|\\(?:approx|sim)(?![a-z])|(?:\.\.\.|…|\\[lc]?dots)$"
)
"""Words that change a value, or make it a bound or an approximate value."""
BASE = re.compile(r"(?<=[0-9a-f])_\{?(?:\\text\{)?([0-9]+|two|eight|ten|sixteen)\}?\}?$", re.ASCII)
NEGATIVE = re.compile(r"(?:minus|negative) (?=[0-9])")
ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
NUMBER_WORDS = {
    **{word: number for number, word in enumerate([*ONES.split(), "seventeen", "eighteen", "nineteen"])},
    **{word: 10 * number for number, word in enumerate(["twenty", "thirty", "forty", "fifty", "sixty"], 2)},
    **{"seventy": 70, "eighty": 80, "ninety": 90},
}
UNIT_NAMES = {
    name: unit
    for unit, names in {
        "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
        "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile", "mg": "milligram", "g": "gram", "kg": "kilogram",
        "s": "second sec", "min": "minute", "h": "hour hr", "day": "d", "week": "", "month": "", "year": "yr",
        "ml": "milliliter millilitre", "l": "liter litre", "cent": "", "dollar": "", "degree": "", "radian": "rad",
    }.items()
    for name in (unit, *names.split(), *(f"{one}s" for one in (unit, *names.split()) if len(one) > 2))
}  # fmt: skip
"""Short names of units, by their names."""


def means(answer: str, reference: str) -> bool:
    """Whether a final answer means the same as the reference.

    The answer may be an equation, have a unit that the reference omits, or reject another value ("not A but B"). It may omit
    the unknown of "x = 2". If the reference is a number, a comma that cannot separate groups of three digits is a
    decimal comma.
    """
    if answer == reference:
        return True
    if max(len(answer), len(reference)) >= LONG:
        return same(answer, reference)
    rest = affirmed(answer)
    if any(_same_with_unit(form, reference) for form in {answer, rest}):
        return True
    named = NAMED.fullmatch(reference)
    if named is not None and not EQUALS.search(answer):
        return means(answer, named[1])
    right = decimal(reference)
    if right is not None:
        return stated_value(answer) == right or stated_value(answer, decimal) == right
    sides = EQUALS.split(rest)
    equation = len(sides) > 1 and not EQUALS.search(reference) and not JOINED.search(_outside(normalised(rest)))
    return equation and same(sides[-1], reference)


def affirmed(text: str) -> str:
    """A text without the values that it rejects: B of "not A but B", A of "A, not B", B of "A is wrong, it is B"."""
    return NOT_THAT.sub("", WRONG.sub("", NOT_BUT.sub("", text))).replace("()", "").strip() or text


def stated_value(text: str, read: Callable[[str], Fraction | None] | None = None) -> Fraction | None:
    """The one value that a text states; None if it states none, several, or only a bound. read: reads the value of a text
    without equations; None: `quantity`."""
    if len(text) >= LONG:
        return None
    text, read = affirmed(plain(text)), read or quantity
    tail = TAIL.search(text)
    parts = [text] if tail is None or RETRACTED.search(text, tail.start()) else [text, text[: tail.start()]]
    for part in parts:
        sides = [side.strip() for side in EQUALS.split(normalised(part))]
        if len(sides) > 1 and (JOINED.search(" = ".join(sides)) or PRODUCT.fullmatch(sides[0])):
            continue
        values = [read(side) for side in sides]
        stated = {value for value in values if value is not None}
        if len(stated) == 1 and (values[-1] is not None or ARITHMETIC.fullmatch(sides[-1])):
            return stated.pop()
    return None


def quantity(text: str) -> Fraction | None:
    """The value of a number or number word, with or without a unit; None for any other text."""
    text = normalised(text)
    if len(text) > LONGEST:
        return None
    text = NEGATIVE.sub("-", CURRENCY.sub(r"\1", text).strip("$ "), count=1)
    plain_value = value(text)
    if plain_value is not None:
        return plain_value
    counted = COUNTER.fullmatch(text)
    if counted is not None:
        return None if CHANGING_COUNTERS & set(text) else value(counted[1].strip())
    measured = UNIT.fullmatch(text)
    if measured is None:
        return _spelled(text)
    words = re.findall(r"[a-z]+", measured[2].replace("\\circ", ""))
    unit = all(word not in NO_UNITS and (len(word) > 1 or word in ONE_LETTER_UNITS) for word in words)
    return value(measured[1]) if unit else None


def contradicts(answer: str, reference: str) -> bool:
    """Whether an answer has words around its value, a unit or a base that the reference contradicts. Mathematics that is
    otherwise equal is then another answer."""
    if max(len(answer), len(reference)) >= LONG:
        return False
    a, b = normalised(answer), normalised(reference)
    if set(QUALIFIED.findall(a)) - set(QUALIFIED.findall(b)):
        return True
    sides = {number for side in EQUALS.split(a) if (number := value(side.strip())) is not None}
    bases, units = [BASE.search(text) for text in (a, b)], [_unit(text) for text in (a, b)]
    return (
        (len(sides) > 1 and not JOINED.search(a))
        or (all(bases) and len({base[1] for base in bases if base}) > 1)
        or (None not in units and units[0] != units[1])
        or {_kind(a), _kind(b)} == {"(", "\\{"}
    )


def _kind(text: str) -> str:
    """The bracket around a list: "(" of a tuple, "\\{" of a set; empty if there is none."""
    inside = re.fullmatch(r"(\(|\\\{)[^(){}\[\]]*,[^(){}\[\]]*(\)|\\\})", text)
    return inside[1] if inside and (inside[1] == "(") == (inside[2] == ")") else ""


def _unit(text: str) -> str | None:
    """The known unit behind a number, by its short name; None if there is none."""
    measured = re.fullmatch(rf"[^a-z]*[0-9}}] ?([a-z]+)({POWER_OF_UNIT})", text)
    known = UNIT_NAMES.get(measured[1]) if measured else None
    return None if known is None or measured is None else known + re.sub(r"[{}^]", "", measured[2])


def _same_with_unit(a: str, b: str) -> bool:
    """Whether texts are equal, or equal numbers with the same unit."""
    if same(a, b):
        return True
    unit = _unit(normalised(b))
    right = None if unit is None else quantity(b)
    return right is not None and _unit(normalised(a)) == unit and quantity(a) == right


def _spelled(text: str) -> Fraction | None:
    """The value of a number word from zero to ninety-nine; None for any other text."""
    tens, _, ones = text.partition("-")
    if text in NUMBER_WORDS:
        return Fraction(NUMBER_WORDS[text])
    above, below = NUMBER_WORDS.get(tens, 0), NUMBER_WORDS.get(ones, 0)
    return Fraction(above + below) if above >= 20 and 0 < below < 10 else None


def _outside(text: str) -> str:
    """A text without the contents of its innermost brackets, whose commas separate no values."""
    return re.sub(r"\([^()]*\)|\[[^\[\]]*\]|\\\{[^{}]*\\\}", "", text.strip(AROUND))
