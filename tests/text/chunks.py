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


# fmt: off
SENTENCES = [
    "The answer isn't obvious, so we'll check it.", "Das Ergebnis müßte größer als 1.024 sein.",
    "L'été s'achève où l'on l'attend.", "¿Cuántos años tenía el niño?", "È così che l'uomo capì.",
    "Não há solução trivial aqui.", "Zażółć gęślą jaźń szybko.", "Příliš žluťoučký kůň úpěl.",
    "Árvíztűrő tükörfúrógép.", "İstanbul'da ığdır ağacı.", "Đây là một câu tiếng Việt.",
    "Съешь ещё этих мягких булок.", "Η γρήγορη αλεπού πηδάει.", "זהו משפט קצר בעברית.", "هذه جملة قصيرة، أليس كذلك؟",
    "یہ اردو کا ایک جملہ ہے۔", "यह हिन्दी में एक वाक्य है।", "এটি একটি বাংলা বাক্য।", "இது ஒரு தமிழ் வாக்கியம்.",
    "นี่คือประโยคภาษาไทยสั้นๆ", "这是一个没有空格的长句子，用来测试分词。",
    "これは日本語の文章で、カタカナーも含みます。", "이것은 한국어 문장입니다.", "ეს ქართული წინადადებაა.",
    "for (int i = 0; i < n; ++i) {\n    a[i] += b[i]*2.5e-3;\n}\n",
    "def f(x):\n\treturn {'k': [x, \"y\"], **x}  # don't\n", "SELECT * FROM t WHERE a_b>='2024-01-31';",
    "https://example.org/a/b?c=1234567&d=%20#e", "</s><|im_end|>\r\n<p class=\"x\">\\(x^2\\)</p>",
    "👩\u200d👩\u200d👧\u200d👦👍🏽🇩🇪❤\ufe0f🏳\ufe0f\u200d🌈", "camelCaseHTTPServerX日本Aʰb'LLs",
    "e\u0301a\u0308\u0301 \u0301\u0301क्ष",
]
# fmt: on


def passage(rng: random.Random, long: bool = False) -> bytes:
    """A random text of at most 440 bytes: chunks, sentences in many languages and code, and, if `long`, long words and long
    white space. One in eight has bytes that are not UTF-8."""
    parts = []
    for _ in range(rng.randrange(1, 6)):
        kind = rng.random() * (1 if long else 0.85)
        if kind < 0.5:
            parts.append(chunk(rng))
        elif kind < 0.85:
            sentence = rng.choice(SENTENCES)
            start = rng.randrange(len(sentence))
            parts.append(sentence[start:] if rng.random() < 0.5 else sentence[: start + 1])
        elif kind < 0.92:
            parts.append(rng.choice([" ", "\n", "\t", " \n", "\u3000", "\r\n", "\u00a0 "]) * rng.randrange(1, 60))
        else:
            parts.append(rng.choice(["a", "xyz", "漢", "7", "=", "-+", "é", "Aa", "'"]) * rng.randrange(1, 120))
    data = bytearray("".join(parts).encode()[:440])
    if rng.random() < 0.125:
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(data) + 1)
            data[at:at] = bytes(rng.choice([0x80, 0xBF, 0xC3, 0xE0, 0xF0, 0xFF]) for _ in range(rng.randrange(1, 3)))
        return bytes(data[:440])
    return data.decode("utf-8", "ignore").encode() or b" "
