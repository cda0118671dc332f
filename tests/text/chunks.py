"""Random text of all kinds that tokenizers split differently."""

import random

# fmt: off
WORDS = [
    "the", "of", "and", "to", "wait", "Okay", "let's", "don't", "I'll", "we've", "CamelCase", "XMLHttpRequest",
    "foo_bar", "snake_case2", "HELLO", "WORLD'S", "it'S", "naïve", "café", "Über", "façade", "Straße", "Привет",
    "мир", "Ещё", "русский", "текст", "中文", "测试", "使用API", "東京タワー", "ひらがな", "カタカナー",
    "한국어", "العربية", "١٢٣٤٥", "٣",
    "हिन\u094dदी", "ไทย", "e\u0301", "n\u0303o", "a\u0308\u0301", "ǅ", "ʰ", "ª", "1234567", "3.14159", "0x1F",
    "2025-11-23", "½", "²", "Ⅷ", "def", "return", "self.", "->", "==", "!=", "//", "/*", "*/", "###", "```", "{}",
    "[]", "()", ";", ":", ",", ".", "...", "!", "?", "'", "''", "\"", "\"quoted\"", "'single'", "'re", "'LL", "'v",
    "'l", "'s", "don", "'ſ", "👩\u200d👩\u200d👧", "👍🏽", "🇩🇪", "😀", "❤\ufe0f", "\u200d", "\u200b", "\ufeff", "\u00ad",
    "‑", "–", "—", "“curly”", "‘x’", "¿", "§", "€", "∑", "√", "≤", "∂x", "$x^2$", "\\frac{a}{b}",
    "http://a.b/c?d=e&f", "\x00", "\x7f",
]
# fmt: on
SPACES = [
    *(" ", " ", " ", " ", "", "", "  ", "   ", "        ", "\t", "\n\t\t", "\n", "\n\n", "\r\n", " \n", "\n "),
    *("\u00a0", "\u3000", "\u2003", "\u2028", "\u2029", "\u0085", "\u1680", "\x0b", "\x0c"),
]
BLOCKS = ((32, 127), (32, 127), (0xA0, 0x600), (0x4E00, 0x4F00), (0x300, 0x340), (9, 14), (0x1F600, 0x1F640))
BLOCKS += ((0x660, 0x66A), (0x3040, 0x3100), (0x2000, 0x2030), (0x27, 0x28), (0x20, 0x21))


def chunk(rng: random.Random) -> str:
    """A random text of at most about 100 characters."""
    if rng.random() < 0.2:
        return "".join(chr(rng.randrange(*rng.choice(BLOCKS))) for _ in range(rng.randrange(1, 20)))
    return "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randrange(1, 8)))
