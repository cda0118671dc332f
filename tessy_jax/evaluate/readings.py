"""Equivalent forms of answers: full-width characters, LaTeX, units, percentages, decimal commas.

All verifiers read answers and references with these functions.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

AROUND = ' \t\r\n\v\f*_`$"'
BEHIND = AROUND + ".,;:"
LONGEST = 200
"""Maximum length of a number, in characters."""
LONG = 2000
"""Texts of at least this many characters are compared unchanged, which bounds the time."""
NUMBER = re.compile(
    r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?(?: ?/ ?[0-9]+)?", re.ASCII
)
MIXED = re.compile(r"([+-]?)([0-9]*) ?\\frac\{([0-9]+)\}\{([0-9]+)\}", re.ASCII)
DECIMAL_COMMA = re.compile(r"[+-]?(?:0,[0-9]+|[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})|[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+)", re.ASCII)
NOT_FULL_WIDTH = "＼｛｝"
"""Full-width characters that are kept, because their ASCII forms would change the structure of LaTeX."""
CHARACTERS: dict[int, int | str] = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) not in NOT_FULL_WIDTH}
CHARACTERS |= {0x3000: " ", ord("。"): ".", ord("−"): "-", 0x2011: "-", 0x2009: " ", 0x202F: " ", 0xA0: " "}
SYMBOLS: dict[str, int | str | None] = {
    "π": r"\pi ",
    "∞": r"\infty ",
    "×": r"\times ",
    "·": r"\cdot ",
    "÷": "/",
    "≤": r"\le ",
    "≥": r"\ge ",
}
SYMBOLS |= {"≠": r"\ne ", "°": r"^\circ "}
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
ROOT = re.compile(r"√ ?(?:\(([^()]*)\)|([0-9]+(?:\.[0-9]+)?|[a-zA-Z]))")
POWER = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:(?:\{,\}|,?\\!|\\[,: ]|[ ~])[0-9]{3})+(?![0-9])", re.ASCII)
LAYOUT = re.compile(r"\\(?:displaystyle|textstyle|left|right)(?![a-zA-Z])|\\!")
SPACE = re.compile(r"\\[,;: ]|\\q?quad(?![a-zA-Z])|~")
WORDS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf|boldsymbol)\s*\{([^{}]*)\}")
SHORT_FRACTION = re.compile(r"\\frac\s*([0-9])\s*([0-9])", re.ASCII)
OPERATOR = re.compile(r" ?([+\-*/=<>^{}()]) ?")
EQUALS = re.compile(r"(?<![<>!:=])=(?!=)")
UNIT = re.compile(r"(.*[0-9}])(?: (?=[a-z])|(?=\^))((?:[a-z/]+|\^\{?\\circ\}?)(?: [a-z/]+){0,2})", re.DOTALL)
ONE_LETTER_UNITS = frozenset("mgslh")
NO_UNITS = frozenset(
    re.findall(
        r"\w+",
        "and or to not minus plus times over mod base root power hundred thousand million billion trillion dozen "
        "percent half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths eighth eighths "
        "tenth tenths hundredths squared cubed factorial pi sqrt hundreds thousands millions billions dozens ",
    )
)
"""Words after a number that change its value."""
NOT_BUT = re.compile(r"\bnot\s+(?:\S+\s+){1,4}?but\s+(?:rather\s+)?", re.IGNORECASE)
NOT_THAT = re.compile(r"[\s,;(]+(?:not|rather than|instead of)\s.*", re.IGNORECASE | re.DOTALL)

Comparable = tuple[str, Fraction | None]
"""The comparable form of a final answer: its normalised text, and its value if it is a number."""


def plain(text: str) -> str:
    """A text with full-width characters, minus signs and special spaces replaced by their ASCII forms."""
    return text if text.isascii() else unicodedata.normalize("NFC", text).translate(CHARACTERS)


def latex(text: str) -> str:
    """A text as plain LaTeX: symbols as commands, without digit separators, layout commands and surrounding punctuation."""
    text = plain(text)
    if len(text) >= LONG:
        return text.strip(AROUND)
    if not text.isascii():
        text = "".join(_fraction(character) for character in text)
        text = POWER.sub(lambda power: f"^{{{power[0].translate(SUPERSCRIPTS)}}}", text)
        text = ROOT.sub(lambda root: f"\\sqrt{{{root[1] or root[2]}}}", text)
        text = text.translate(str.maketrans(SYMBOLS))
    text = GROUPED.sub(lambda number: re.sub(r"[^0-9]", "", number[0]), text)
    text = SPACE.sub(" ", LAYOUT.sub("", text)).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text).strip(AROUND)


def same(a: str, b: str) -> bool:
    """Whether two final answers are equal as numbers or as texts."""
    return equal(compared(a), compared(b))


def compared(text: str) -> Comparable:
    """The comparable form of a final answer, for `equal`."""
    text = normalised(text)
    return text.replace(", ", ","), value(text)


def equal(a: Comparable, b: Comparable) -> bool:
    """Whether two final answers are equal as numbers or as texts. a, b: from `compared`."""
    return a[0] == b[0] if a[1] is None or b[1] is None else a[1] == b[1]


def means(answer: str, reference: str) -> bool:
    """Whether a final answer means the same as the reference. The answer may be an equation, have a unit that the reference
    omits, or reject another value ("not A but B"). A decimal comma is read as one if the reference has one."""
    if answer == reference:
        return True
    if len(answer) >= LONG:
        return same(answer, reference)
    affirmed = NOT_THAT.sub("", NOT_BUT.sub("", answer)) or answer
    forms = {answer, affirmed} | (set() if EQUALS.search(reference) else {EQUALS.split(affirmed)[-1]})
    if any(same(form, reference) for form in forms):
        return True
    right = decimal(reference)
    return right is not None and any(quantity(form) == right or decimal(form) == right for form in forms)


def normalised(text: str) -> str:
    """The form of a text that comparisons use."""
    text = latex(text)
    if len(text) < LONG:
        text = WORDS.sub(r"\1", text).replace("\\%", "%").replace("\\$", "$")
    for _ in range(2):  # outside and inside \\( and \\)
        text = text.lstrip(AROUND).rstrip(BEHIND).removeprefix("\\(").removesuffix("\\)")
    text = " ".join(text.split())
    if len(text) < LONG:
        text = re.sub(r"(?<=[0-9])(?=[a-zA-Z]{2})", " ", OPERATOR.sub(r"\1", text).strip())
        inside = re.fullmatch(r"\{([^{}]*)\}|\((\w+)\)", text)
        text = text if inside is None else inside[1] or inside[2] or ""
    return text.casefold()


def value(text: str) -> Fraction | None:
    """The exact value of a normalised text: a number, a percentage, or a fraction in LaTeX; None for any other text."""
    bare = re.sub(r" ?(?:%|percent)$", "", text)
    mixed = MIXED.fullmatch(bare) if len(bare) <= LONGEST else None
    if mixed is not None:
        sign, whole, above, below = mixed.groups()
        if not int(below):
            return None
        result: Fraction | None = (Fraction(int(above), int(below)) + int(whole or 0)) * (-1 if sign == "-" else 1)
    else:
        result = number(bare)
    return result if result is None or bare == text else result / 100


def quantity(text: str) -> Fraction | None:
    """The value of a number with or without a unit; None for any other text."""
    text = normalised(text)
    plain_value, measured = value(text), UNIT.fullmatch(text) if len(text) <= LONGEST else None
    if plain_value is not None or measured is None:
        return plain_value
    words = measured[2].replace("/", " ").split()
    unit = all(word not in NO_UNITS and (len(word) > 1 or word in ONE_LETTER_UNITS) for word in words)
    return value(measured[1]) if unit else None


def decimal(text: str) -> Fraction | None:
    """The value of a number, which may have a decimal comma; None for any other text."""
    text = normalised(text)
    return number(text.replace(".", "").replace(",", ".")) if DECIMAL_COMMA.fullmatch(text) else value(text)


def number(text: str) -> Fraction | None:
    """The exact value of a number, from its normalised text; None for any other text."""
    if len(text) > LONGEST or not NUMBER.fullmatch(text):
        return None
    try:
        above, _, below = text.replace(",", "").partition("/")
        return Fraction(above.strip()) / Fraction(below.strip() or 1)
    except (ValueError, ZeroDivisionError):
        return None


def _fraction(character: str) -> str:
    parts = unicodedata.decomposition(character)
    if not parts.startswith("<fraction>"):
        return character
    above, _, below = unicodedata.normalize("NFKC", character).partition("\u2044")
    return f"\\frac{{{above}}}{{{below or 1}}}"
