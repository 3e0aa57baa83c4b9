"""1,000 varied strings from a fixed seed: what the recorded ids of llama.cpp in tests/golden were made from.

Changing anything here changes the strings: record again (tests/tokenizer/record_llama_cpp.py). Left out on purpose:
U+2581 (SentencePiece's own space mark), letters younger than Unicode 13 (libraries disagree), and characters that
SmolLM2 cannot spell.
"""

from __future__ import annotations

import random
from collections.abc import Callable

SCRIPTS = {
    "latin": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "accents": "àâäçéèêëîïñôöùûüÿßøåæœščžőŁđİıÀÉÖÑ",
    "greek": "αβγδεζηθικλμνξοπρσςτυφχψωΑΩάέή",
    "cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюяЁЖ",
    "han": "的一是不了人我在有他这中大来上国個説時間東京語学",
    "kana": "あいうえおかきくけこさしすせそアイウエオカキクケコー",
    "hangul": "가나다라마바사아자차카타파하한국어말",
    "arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهويىة",
    "hebrew": "אבגדהוזחטיכלמנסעפצקרשתםןףץ",
    "devanagari": "अआइईउकखगघचछजटडतथदनपबमयरलवशसहािीुूेैोौं्",
    "thai": "กขคงจชซญดตถทธนบปผพฟมยรลวศสหอฮะาิีึืุูเแโใไ่้",
    "digits": "0123456789",
    "odd digits": "½¾²³Ⅷ٣०९④",
    "punctuation": ".,;:!?-_'\"()[]{}<>/\\|@#$%^&*+=~`",
    "typography": "“”‘’…—–«»•·°§¶†‡€£¥₹→⇒≤≥≠±×÷√∞∑∫",
    "emoji": "😀🎉🚀🦙🌍👍🏽👩🏽‍💻🇫🇮❤️",
    "spaces": " \t\n\r\u00a0\u2003\u3000\u200b",
}
PROSE = [
    "How to explain Internet to a medieval knight?",
    "The quick brown fox jumps over the lazy dog, doesn't it? It's 12:30 and they'll've gone; I'M SURE WE'RE LATE.",
    "Die Würde des Menschen ist unantastbar. Ça coûte 3,50 € — déjà vu! ¿Qué tal? Ñandú.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Γαῖα καὶ Οὐρανός.",
    "吾輩は猫である。名前はまだ無い。我能吞下玻璃而不伤身体。 나는 유리를 먹을 수 있어요.",
    "नमस्ते दुनिया। שלום עולם! مرحبا بالعالم؟ สวัสดีชาวโลก",
    "def f(x: int) -> dict[str, int]:\n    return {'a': x ** 2, \"b\": 0xFF}  # two\n\n\tif x != 3.14e-10: pass\r\n",
    '<p class="a">x &amp; y</p>\n{"key": [1, 22, 333, 4444, 55555], "nested": {"ok": true}}',
    "https://example.org/a/b?c=d&e=%20f#g user.name+tag@mail.example.com C:\\Users\\x\\file.txt ../up/one",
    "   leading and trailing   \n\n\n  a  b   c    d     e\t\tf \n",
]


def _word(rng: random.Random, scripts: list[str]) -> str:
    return "".join(rng.choice(SCRIPTS[rng.choice(scripts)]) for _ in range(rng.randint(1, 9)))


def _one_script(rng: random.Random) -> str:
    script = rng.choice(list(SCRIPTS))
    return rng.choice([" ", "  ", "\n", ""]).join(_word(rng, [script]) for _ in range(rng.randint(1, 12)))


def _mixture(rng: random.Random) -> str:
    return " ".join(_word(rng, list(SCRIPTS)) for _ in range(rng.randint(1, 12)))


def _slice_of_prose(rng: random.Random) -> str:
    text = rng.choice(PROSE) + rng.choice(["", " ", "\n\n"]) + rng.choice(PROSE)
    start = rng.randrange(len(text))
    return text[start : start + rng.randint(1, 120)]


def _runs(rng: random.Random) -> str:
    alphabet = " \n\tab1.'-" + rng.choice("éя中😀")
    return "".join(rng.choice(alphabet) * rng.randint(1, 7) for _ in range(rng.randint(1, 12)))


def _contractions(rng: random.Random) -> str:
    stems, ends = (
        ["I", "we", "DON", "x1", "你", "é", " "],
        ["'s", "'S", "'t", "'ll", "'LL", "'re", "'Ve", "'m", "'d", "'x", "''"],
    )
    return rng.choice(["", " "]).join(rng.choice(stems) + rng.choice(ends) for _ in range(rng.randint(1, 10)))


def _numbers(rng: random.Random) -> str:
    shapes = ["{}", "{:,}", "-{}", "{}.{}", "0x{:x}", "{}%", "№{}", "{}st"]
    return " ".join(
        rng.choice(shapes).format(rng.randrange(10 ** rng.randint(1, 15)), 5) for _ in range(rng.randint(1, 8))
    )


def _control_look_alikes(rng: random.Random) -> str:
    marks = [
        "<|end|>",
        "<|im_end|>",
        "<|im_start|>",
        "<|user|>",
        "<s>",
        "</s>",
        "<unk>",
        "<|endoftext|>",
        "<0x0A>",
        "[INST]",
        "<|",
        "|>",
    ]
    return rng.choice(["", " ", "\n"]).join(
        rng.choice([rng.choice(marks), _word(rng, ["latin"])]) for _ in range(rng.randint(1, 8))
    )


def sample_texts(n: int = 1000) -> list[str]:
    """The first n strings, the same on every machine."""
    rng = random.Random(20240422)
    makers: list[Callable[[random.Random], str]] = [
        _one_script, _mixture, _slice_of_prose, _runs, _contractions, _numbers, _control_look_alikes,
    ]  # fmt: skip
    texts = ["", " ", "\n", *PROSE]
    seen = set(texts)
    while len(texts) < n:
        text = makers[len(texts) % len(makers)](rng)
        if text not in seen:
            seen.add(text)
            texts.append(text)
    return texts[:n]
