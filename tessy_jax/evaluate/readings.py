"""Forms of texts and numbers that mean the same to a person: full-width characters, LaTeX, fractions, powers of ten.

All verifiers read answers and references with these functions. `meaning` reads units, equations and words around a value.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

AROUND = ' \t\r\n\v\f*_`$"'
BEHIND = AROUND + ".,;:"
ELLIPSES = ("...", "…", "\\dots", "\\ldots")
"""Ends of texts that are cut off."""
PERCENT = re.compile(r" ?(?:%|percent)$")
START_OF_NUMBER = frozenset("+-.0123456789\\")
LONGEST = 200
"""Maximum length of a number, in characters."""
LONG = 2000
"""Texts of at least this many characters are compared unchanged, which bounds the time."""
NUMBER = re.compile(
    r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?(?: ?/ ?[0-9]+)?", re.ASCII
)
MIXED = re.compile(r"([+-]?)(?:([0-9]*) ?\\frac\{([0-9]+)\}\{([0-9]+)\}|([0-9]+) ([0-9]+)/([0-9]+))", re.ASCII)
SCIENTIFIC = re.compile(r"([+-]?[0-9][0-9.,]*) ?(?:\\times|\\cdot|\*|x) ?10\^\{?([+-]?[0-9]{1,3})\}?", re.ASCII)
SCALED = re.compile(r"([+-]?[0-9][0-9.,]*) (hundred|thousand|million|billion|trillion|dozen)", re.ASCII)
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
DECIMAL_COMMA = re.compile(r"[+-]?(?:0,[0-9]+|[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})|[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+)", re.ASCII)
NOT_FULL_WIDTH = "＼｛｝"
"""Full-width characters that are kept, because their ASCII forms would change the structure of LaTeX."""
CHARACTERS: dict[int, int | str] = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) not in NOT_FULL_WIDTH}
CHARACTERS |= dict.fromkeys(map(ord, "“”„«»"), '"') | {code: code - 0x2475 for code in range(0x24B6, 0x24D0)}
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
SYMBOLS |= {"≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "°": r"^\circ "}
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
ROOT = re.compile(r"√ ?(?:\(([^()]*)\)|([0-9]+(?:\.[0-9]+)?|[a-zA-Z]))")
POWER = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:(?:\{,\}|,?\\!|\\[,: ]|[ ~])[0-9]{3})+(?![0-9])", re.ASCII)
LAYOUT = re.compile(r"\\(?:displaystyle|textstyle|left|right)(?![a-zA-Z])|\\!")
SPACE = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![a-zA-Z])|~")
WORDS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf|boldsymbol)\s*\{([^{}]*)\}")
SHORT_FRACTION = re.compile(r"\\frac\s*([0-9])\s*([0-9])", re.ASCII)
PLAIN = re.compile(r"[^\\{}~0-9]*")
"""Text that LaTeX leaves as it is."""
WORD = re.compile(r"[a-z]+(?: [a-z]+)*", re.ASCII | re.IGNORECASE)
OPERATOR = re.compile(r" ?(\\\\|[+\-*/=<>^{}()&]) ?| (?=\\[a-z])")
ABOUT = re.compile(r"\s*~\s*(?=[0-9][^~]*$)")
Comparable = tuple[str, Fraction | None]
"""The comparable form of a final answer: its normalised text, and its value if it is a number."""


def plain(text: str) -> str:
    """A text with full-width characters, minus signs, special spaces and quotes replaced by those of ASCII, and with
    "answer:" for `<answer>`."""
    if "</answer>" in text:
        text = text.replace("<answer>", "\nanswer: ").replace("</answer>", "\n")
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
    if PLAIN.fullmatch(text):
        return text.strip(AROUND)
    text = GROUPED.sub(lambda number: re.sub(r"[^0-9]", "", number[0]), text)
    text = ABOUT.sub(r"\\approx ", text, count=1) if ABOUT.match(text) else text
    text = SPACE.sub(" ", LAYOUT.sub("", text)).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text).strip(AROUND)


def same(a: str, b: str) -> bool:
    """Whether two final answers are equal as numbers or as texts."""
    return equal(compared(a), compared(b))


def compared(text: str) -> Comparable:
    """The comparable form of a final answer, for `equal`."""
    return _compared(text) if len(text) < LONG else _compared.__wrapped__(text)


def equal(a: Comparable, b: Comparable) -> bool:
    """Whether two final answers are equal as numbers or as texts. a, b: from `compared`."""
    return a[0] == b[0] if a[1] is None or b[1] is None else a[1] == b[1]


def normalised(text: str) -> str:
    """The form of a text that comparisons use."""
    if WORD.fullmatch(text):
        return text.lower()
    text = latex(text)
    if len(text) < LONG:
        text = WORDS.sub(r"\1", text).replace("\\%", "%").replace("\\$", "$")
    for _ in range(2):  # outside and inside \\( and \\)
        text = text.lstrip(AROUND).removeprefix("\\(")
        text = (text.rstrip(AROUND) if text.rstrip(AROUND).endswith(ELLIPSES) else text.rstrip(BEHIND)).removesuffix("\\)")
    text = " ".join(text.split())
    if len(text) < LONG:
        text = re.sub(r"(?<=[0-9])(?=[a-zA-Z]{2})", " ", OPERATOR.sub(lambda mark: mark[1] or "", text).strip())
        inside = re.fullmatch(r"\{([^{}]*)\}|\((\w+)\)", text)
        text = text if inside is None else inside[1] or inside[2] or ""
    return text.casefold()


def value(text: str) -> Fraction | None:
    """The exact value of a normalised text; None if it has none. It is a number, perhaps with a power of ten, a word such as
    "million" or a percent sign, a mixed number, or a fraction in LaTeX."""
    if len(text) > LONGEST or text[:1] not in START_OF_NUMBER:
        return None
    bare = PERCENT.sub("", text)
    scaled, powered, mixed = SCALED.fullmatch(bare), SCIENTIFIC.fullmatch(bare), MIXED.fullmatch(bare)
    result: Fraction | None
    if mixed is not None:
        whole, above, below = (int(digits or 0) for digits in (mixed.groups()[1:4] if mixed[3] else mixed.groups()[4:]))
        result = (whole + Fraction(above, below)) * (-1 if mixed[1] == "-" else 1) if below else None
    elif scaled is not None:
        result = _times(number(scaled[1]), Fraction(SCALES[scaled[2]]))
    elif powered is not None:
        result = _times(number(powered[1]), Fraction(10) ** int(powered[2]))
    else:
        result = number(bare)
    return result if bare == text else _times(result, Fraction(1, 100))


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


@lru_cache(maxsize=4096)
def _compared(text: str) -> Comparable:
    text = normalised(text)
    return text.replace(", ", ","), value(text)


def _times(number: Fraction | None, factor: Fraction) -> Fraction | None:
    return None if number is None else number * factor


def _fraction(character: str) -> str:
    parts = unicodedata.decomposition(character)
    if not parts.startswith("<fraction>"):
        return character
    above, _, below = unicodedata.normalize("NFKC", character).partition("\u2044")
    return f"\\frac{{{above}}}{{{below or 1}}}"
