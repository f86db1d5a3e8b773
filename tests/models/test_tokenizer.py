"""The tokenizer: texts become the ids that transformers makes of them; folders are read, or refused by one error."""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsegen.errors import InputError
from sparsegen.models import vocabulary
from sparsegen.models.tokenizer import Tokenizer
from sparsegen.models.vocabulary import (
    ALPHABET,
    END,
    SHIPPED,
    START,
    Vocabulary,
    read_vocabulary,
    shipped_vocabulary,
)
from sparsegen.weights import CheckpointError

# ids of transformers 4.57.6, CLIPTokenizerFast, between start and end
GOLDEN = {
    "": [],
    " \t\n ": [],
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "An astronaut riding a horse, photorealistic": [550, 18376, 6765, 320, 4558, 267, 1153, 16157],
    "winter, a lake and two fir trees": [2541, 267, 320, 2553, 537, 1237, 16233, 4682],
    "Hello, It's a DOG's 1234 day!!! ©": [
        *(3306, 267, 585, 568, 320, 1929, 568, 272, 273, 274, 275, 575, 995, 5811),
    ],
    "a <|endoftext|>b<|STARTOFTEXT|>": [320, 49407, 321, 49406],
    "ΌΔΟΣ №½ 👩\u200d🚀 “quoted” 日本語": [
        *(139, 234, 138, 112, 138, 123, 139, 481, 8604, 500, 33613, 26304, 13542, 728, 506, 27706, 728, 507),
        *(39121, 44353, 34002, 508),
    ],
}
NASTY = (
    *GOLDEN,
    "ΟΔΟΣ ΟΔΟΣ. ς Σ",
    "İstanbul Iıi ẞ ﬁ Ǆ ǅ K Å",
    "“curly” ‘quotes’ it’s it's 'S 'Re y'all'd've ''s !'s",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ❤️",
    "e\u0301 é a\u0328\u0301 q\u0307\u0323 \u0301x \u1100\u1161\u11a8 각",
    "\u0000a\u0001b\u001cc\u001dd\u001ee\u001ff\u007fg\u0085h",
    "a\u00a0b\u1680c\u2003d\u200be\u2028f\u2029g\u202fh\u205fi\u3000j\u180ek\ufeffl",
    "日本語テキスト、中文。 한국어 ไทย हिन्दी עִבְרִית العَرَبِيَّة",
    "1234567890 ½ ² Ⅷ ① 一二三 ٣٤ 𝟘",
    "snake_case kebab-case C++ #!/bin/sh a@b.c http://x.y/?z=1&w=%20 ((a:1.2))",
    "a" * 3000,
    "abracadabra" * 300,
    "!?" * 500,
    "é" * 700,
    "<|startoftext|><|endoftext|>",
    "x<|endoftext|>'s<|endoftext|> <|EndOfText|> <|endoftext |> <|endoftext|",
    "<|endoftext|>\u0338 <|startoftext|>\u0301",
    "</w> a</w> <w/> Ġ Ċ ł Ń",
    "\ue000 \uffff \U0010ffff \U000e0041",
)


def between(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a whole text, without start, end and padding."""
    tokens = tokenizer.encode(text, 4 * len(text.encode()) + 10)
    assert tokens.cut == ""
    return tokens.ids[1 : tokens.count - 1].tolist()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def merges_of(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    symbols = {i: symbol for symbol, i in vocabulary.ids.items()}
    ranked = sorted((rank, pair) for pair, (rank, _) in vocabulary.merges.items())
    return [(symbols[left], symbols[right]) for _, (left, right) in ranked]


def write_pair(folder: Path, ids: dict[str, int], merges: list[tuple[str, str]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ids), "utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "merges.txt").write_bytes("\n".join(lines).encode())
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = shipped_vocabulary()
    return write_pair(tmp_path_factory.mktemp("clip"), found.ids, merges_of(found))


# A vocabulary of few letters: "low", "lower", "we".
MERGES = [("l", "o"), ("lo", "w</w>"), ("lo", "w"), ("e", "r</w>"), ("low", "er</w>"), ("w", "e</w>")]
LETTERS = ["l", "o", "w", "e", "r"]
SYMBOLS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *map("".join, MERGES), START, END]
IDS = {symbol: i for i, symbol in enumerate(SYMBOLS)}


def whole() -> dict[str, Any]:
    """A tokenizer.json as tokenizers writes it, of the small vocabulary."""
    steps = [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}]
    return {
        "version": "1.0",
        "added_tokens": [{"id": IDS[name], "content": name, "special": True} for name in (START, END)],
        "normalizer": {"type": "Sequence", "normalizers": [*steps, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split"}, {"type": "ByteLevel"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "vocab": dict(IDS),
            "merges": [list(pair) for pair in MERGES],
        },
    }


def write_whole(folder: Path, value: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(value), "utf-8")
    return folder


# -- agreement with transformers -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(clip_folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.CLIPTokenizerFast(str(clip_folder / "vocab.json"), str(clip_folder / "merges.txt"))


def comparable(character: str) -> bool:
    """Whether Python and transformers know the same of a character.

    Python's Unicode is the older one for letters and digits. It is the newer one for combining marks, whose order is
    that of Unicode 9 in transformers: marks are compared if they have been as they are since Unicode 3.2.
    """
    old = unicodedata.ucd_3_2_0.combining(character) == unicodedata.combining(character)
    return unicodedata.category(character) not in ("Cn", "Cs") and old


def random_texts(count: int) -> list[str]:
    """Texts of 0 to 40 characters: of all Unicode, of its first blocks, of ASCII, of difficult words, or mixed."""
    rng = random.Random(3)
    assigned = [character for character in map(chr, range(sys.maxunicode + 1)) if comparable(character)]
    ascii_ = [chr(code) for code in range(128)]
    near = [character for character in assigned if ord(character) < 0x3000]
    words = ["'s", "'LL", "’", " ", "  ", "\u0301", "\u200d", END, START.upper(), "the ", "Photo", "Σ", "2"]
    texts = []
    for _ in range(count):
        pools = rng.choice(([assigned], [ascii_], [near], [words], [assigned, ascii_, near, words]))
        texts.append("".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(41))))
    return texts


@pytest.mark.torch
@pytest.mark.parametrize("make", [lambda: random_texts(2000), lambda: NASTY], ids=["random", "nasty"])
def test_ids_are_those_of_transformers(
    make: Callable[[], Sequence[str]], tokenizer: Tokenizer, reference: Any
) -> None:
    texts = make()
    expected = reference(list(texts), add_special_tokens=False)["input_ids"]
    different = [text for text, ids in zip(texts, expected, strict=True) if between(tokenizer, text) != ids]
    assert different == []
    assert sum(map(len, expected)) > 10 * len(texts)


@pytest.mark.torch
def test_cutting_and_padding_are_those_of_transformers(tokenizer: Tokenizer, reference: Any) -> None:
    for text in NASTY:
        expected = reference(text, padding="max_length", max_length=77, truncation=True)
        tokens = tokenizer.encode(text)
        assert tokens.ids.tolist() == expected["input_ids"], text
        assert tokens.count == sum(expected["attention_mask"]), text


@pytest.mark.torch
def test_the_folder_that_transformers_saves_is_read(tmp_path: Path, reference: Any) -> None:
    reference.save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):  # transformers 5 saves only tokenizer.json
        (tmp_path / name).unlink()
    assert read_vocabulary(tmp_path) == shipped_vocabulary()


@pytest.mark.torch
def test_a_small_vocabulary_gives_the_ids_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_pair(tmp_path / "small", IDS, MERGES)
    theirs = transformers.CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    ours = Tokenizer.from_folder(folder)
    rng = random.Random(4)
    texts = ["".join(rng.choices("lower lower ,é", k=rng.randrange(30))) for _ in range(300)]
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    assert [between(ours, text) for text in texts] == expected


# -- texts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", GOLDEN)
def test_ids_of_a_few_prompts(text: str, tokenizer: Tokenizer) -> None:
    assert between(tokenizer, text) == GOLDEN[text]


def test_ids_are_padded_to_the_length_by_the_end_or_a_given_id(tokenizer: Tokenizer) -> None:
    first = tokenizer.encode("a photo of a cat")
    assert first.ids.shape == (77,) and first.ids.dtype == np.int32
    assert first.count == 7 and first.cut == "" and first.unknown == ()
    assert first.ids.tolist() == [49406, 320, 1125, 539, 320, 2368, *[49407] * 71]
    second = Tokenizer(padding=0).encode("a photo of a cat")
    assert second.ids.tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, *[0] * 70]
    assert tokenizer.encode("", 2).ids.tolist() == [49406, 49407]


def test_a_long_text_is_cut_between_start_and_end_and_the_rest_is_given(tokenizer: Tokenizer) -> None:
    fits = tokenizer.encode("cat " * 75)
    assert fits.count == 77 and fits.cut == ""
    longer = tokenizer.encode("Cat " * 75 + "on a Sofa, it's 25 €")
    assert longer.ids.tolist() == fits.ids.tolist()
    assert longer.count == 77
    assert longer.cut == "on a sofa , it 's 2 5 €"
    inside = tokenizer.encode("antidisestablishmentarianism", 5)
    assert inside.count == 5 and "antidisestablishmentarianism".endswith(inside.cut) and inside.cut
    assert tokenizer.encode(f"a b{END}c", 3).cut == f"b {END} c"


def test_cutting_inside_a_character_gives_the_rest_with_a_replacement(tokenizer: Tokenizer) -> None:
    text = "\U0010ffff"  # four bytes that no merge joins
    assert len(between(tokenizer, text)) == 4
    assert set(tokenizer.encode(text, 4).cut) == {"\ufffd"}


def test_every_text_of_lower_case_words_is_decoded_to_itself(tokenizer: Tokenizer) -> None:
    for text in ("a photo of a cat", "日本語 テキスト", "naïve café № x", "👩\u200d🚀"):
        assert tokenizer.decode(between(tokenizer, text)) == text


def test_a_merge_of_lower_rank_comes_first_wherever_it_is() -> None:
    small = Tokenizer(Vocabulary(IDS, read_small_merges()))
    lengths = {"low": 1, "lower": 1, "we": 1, "lowlow": 2, "wwe": 2, "owe": 2, "lolo": 3}
    assert {text: len(between(small, text)) for text in lengths} == lengths


def read_small_merges() -> dict[tuple[int, int], tuple[int, int]]:
    return {(IDS[a], IDS[b]): (rank, IDS[a + b]) for rank, (a, b) in enumerate(MERGES)}


def test_words_that_a_small_vocabulary_cannot_spell_are_named() -> None:
    small = Tokenizer(Vocabulary(IDS, read_small_merges()))
    tokens = small.encode("lower, low sow we sow")
    assert tokens.unknown == (",", "sow")
    assert tokens.ids[:7].tolist() == [
        IDS[each] for each in (START, "lower</w>", END, "low</w>", END, "o", "w</w>")
    ]


def test_the_bytes_have_256_different_characters_without_blanks() -> None:
    assert len(set(ALPHABET)) == 256
    assert not any(unicodedata.category(character) in ("Cc", "Zs", "Cf") for character in ALPHABET)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((b"a cat",), "of type bytes, expected str"),
        (("a", 1), "length is 1, expected at least 2"),
        (("ab\ud83d",), r"character 2 of the text is '\\ud83d', half of a surrogate pair"),
    ],
)
def test_a_text_that_has_no_ids_is_refused(
    given: tuple[Any, ...], message: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer.encode(*given)


@pytest.mark.parametrize("padding", [-1, 49408])
def test_padding_is_an_id_of_the_vocabulary(padding: int) -> None:
    with pytest.raises(InputError, match="expected an id of the vocabulary: 0 to 49407"):
        Tokenizer(padding=padding)


# -- vocabularies ----------------------------------------------------------------------------------------


def test_the_shipped_vocabulary_has_clips_ids() -> None:
    found = shipped_vocabulary()
    assert len(found.ids) == 49408 and len(found.merges) == 48894
    assert (found.start, found.end) == (49406, 49407)
    some = {"!": 0, "a</w>": 320, "in": 512, "cat</w>": 2368, "jekyll</w>": 49405}
    assert {symbol: found.ids[symbol] for symbol in some} == some
    text = gzip.decompress(SHIPPED.read_bytes())
    assert text.count(b"\n") == 48895
    assert SHIPPED.read_bytes()[4:8] == bytes(4), (
        "the time in the gzip header is 0: the same bytes every time"
    )
    assert "Copyright (c) 2021 OpenAI" in (SHIPPED.parent / "LICENSE").read_text("utf-8")


def test_a_folder_of_vocab_and_merges_is_read(clip_folder: Path) -> None:
    assert read_vocabulary(clip_folder) == shipped_vocabulary()
    tokens = Tokenizer.from_folder(clip_folder, padding=0).encode("a photo of a cat")
    assert tokens.ids[:8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]


def test_both_layouts_of_a_folder_and_both_spellings_of_merges_are_one(tmp_path: Path) -> None:
    expected = read_vocabulary(write_pair(tmp_path / "pair", IDS, MERGES))
    assert expected == Vocabulary(IDS, read_small_merges())
    assert read_vocabulary(write_whole(tmp_path / "whole", whole())) == expected
    older = whole()
    older["model"]["merges"] = [" ".join(pair) for pair in MERGES]
    assert read_vocabulary(write_whole(tmp_path / "older", older)) == expected
    lines = (tmp_path / "pair" / "merges.txt").read_bytes()
    (tmp_path / "pair" / "merges.txt").write_bytes(lines.replace(b"\n", b"\r\n"))
    (tmp_path / "pair" / "added_tokens.json").write_text(json.dumps({END: IDS[END]}))
    assert read_vocabulary(tmp_path / "pair") == expected


def in_model(**options: Any) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        parsed = whole()
        parsed["model"].update(options)
        write_whole(folder, parsed)

    return write


def in_file(**parts: Any) -> Callable[[Path], object]:
    return lambda folder: write_whole(folder, {**whole(), **parts})


def raw(name: str, content: bytes) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        write_pair(folder, IDS, MERGES)
        (folder / name).write_bytes(content)

    return write


def lines(*merges: str) -> bytes:
    return "\n".join(["#version: 0.2", *merges, ""]).encode()


GOOD = [" ".join(pair) for pair in MERGES]
VOCAB = json.dumps(IDS).encode()
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda folder: None, "has no vocab.json and no merges.txt, expected tokenizer.json, or"),
    "one half": (lambda folder: (folder / "vocab.json").write_bytes(VOCAB), "has no merges.txt, expected"),
    "cut vocab": (raw("vocab.json", VOCAB[:40]), "vocab.json: is not a JSON object"),
    "empty vocab": (raw("vocab.json", b""), "is not a JSON object"),
    "a list": (raw("vocab.json", b"[1]"), "is not a JSON object"),
    "nested": (raw("vocab.json", b"[" * 500_000), "is not a JSON object"),
    "a long number": (
        raw("vocab.json", b'{"a": ' + b"9" * 100_000 + b"}"),
        "is not a JSON object|ids 0 to 0",
    ),
    "not UTF-8": (raw("vocab.json", b'{"\xff": 0}'), r"is not UTF-8 text \(byte 2\)"),
    "an id twice": (raw("vocab.json", json.dumps({**IDS, "l": 1}).encode()), "ids 0 to 17, each once"),
    "a negative id": (raw("vocab.json", json.dumps({**IDS, "l": -1}).encode()), "ids 0 to 17, each once"),
    "a true id": (raw("vocab.json", json.dumps({**IDS, "o": True}).encode()), "ids 0 to 17, each once"),
    "a text as id": (raw("vocab.json", json.dumps({**IDS, "o": "1"}).encode()), "ids 0 to 17, each once"),
    "no end": (
        raw("vocab.json", json.dumps({s: i for s, i in IDS.items() if s != END}).encode()),
        r"its vocabulary lacks <\|endoftext\|>",
    ),
    "a strange symbol": (
        raw("vocab.json", json.dumps({**IDS, "\x1b]\n": 18}).encode()),
        r"symbols: \\x1b\]\\n",
    ),
    "no header": (raw("merges.txt", lines(*GOOD).partition(b"\n")[2]), "begins with l o, expected #version"),
    "empty merges": (raw("merges.txt", b""), "begins with , expected #version"),
    "cut merges": (
        raw("merges.txt", lines(*GOOD[:-1])),
        "5 merges do not make 1 of the .* 18 symbols: we</w>",
    ),
    "merges cut in a line": (raw("merges.txt", lines(*GOOD)[:-7]), "line 7 is w, expected two symbols"),
    "an empty line": (raw("merges.txt", lines("l o", "", *GOOD)), "line 3 is , expected two symbols"),
    "three symbols": (raw("merges.txt", lines(*GOOD, "l o w")), "line 8 is l o w, expected two symbols"),
    "an unknown symbol": (
        raw("merges.txt", lines(*GOOD, "x y")),
        r"merge 6 \(x y\) uses symbols that the vocabulary lacks: x, y, xy",
    ),
    "binary merges": (raw("merges.txt", bytes(range(256))), "is not UTF-8 text"),
    "an added token": (
        raw("added_tokens.json", b'{"<cat-toy>": 18}'),
        "adds 1 tokens .*not supported: <cat-toy>",
    ),
    "a folder as file": (lambda folder: (folder / "tokenizer.json").mkdir(), "is not a regular file"),
    "cut file": (
        lambda folder: (folder / "tokenizer.json").write_text(json.dumps(whole())[:300]),
        "tokenizer.json: is not a JSON object",
    ),
    "no model": (in_file(model=None), "has no table `model`"),
    "another model": (in_model(type="Unigram"), "its model has type Unigram, expected BPE"),
    "a list as type": (in_model(type=["BPE"]), "its model has type BPE, expected BPE"),
    "no end of words": (in_model(end_of_word_suffix=None), "end_of_word_suffix NoneType, expected </w>"),
    "dropout": (in_model(dropout=0.1), "its model has dropout 0.1"),
    "bytes": (in_model(byte_fallback=True), "byte_fallback True, expected False"),
    "no vocabulary": (in_model(vocab=[]), "has no table `vocab` in its model"),
    "merges of three": (in_model(merges=[["l", "o", "w"]]), "its merge 0 is not two symbols"),
    "merges of numbers": (in_model(merges=[[1, 2]]), "its merge 0 is not two symbols"),
    "merges of nothing": (in_model(merges=[["l", ""]]), "its merge 0 is not two symbols"),
    "no merges": (in_model(merges=None), "its 0 merges do not make 6"),
    "another normalizer": (in_file(normalizer={"type": "NFC"}), "its normalizer is not CLIP's: NFC, Replace"),
    "another splitter": (
        in_file(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, None]}),
        "its pre_tokenizer is not CLIP's: Split, ByteLevel",
    ),
    "added tokens": (
        in_file(added_tokens=[{"id": 18, "content": "<cat>"}, 5]),
        "adds 2 tokens .*: <cat>, None",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_refused_by_one_error(fault: str, tmp_path: Path) -> None:
    write, message = FAULTS[fault]
    write(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_vocabulary(tmp_path)
    assert caught.value.path.startswith(str(tmp_path)) and caught.value.advice
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.json"])
def test_a_file_is_read_up_to_a_limit(name: str, tmp_path: Path) -> None:
    write_pair(tmp_path, IDS, MERGES)
    with open(tmp_path / name, "wb") as file:
        file.truncate(1 << 33 if sys.platform == "linux" else 1 << 24)  # sparse
    with pytest.raises(CheckpointError, match="has more than 8 MiB, the most that is read"):
        read_vocabulary(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_vocabulary(tmp_path)


def test_every_truncation_of_a_small_folder_is_noticed(tmp_path: Path) -> None:
    write_pair(tmp_path, IDS, MERGES)
    for name in ("vocab.json", "merges.txt"):
        content = (tmp_path / name).read_bytes()
        # without its last line break a file is still whole
        for size in range(len(content) - (name == "merges.txt")):
            (tmp_path / name).write_bytes(content[:size])
            with pytest.raises(CheckpointError):
                read_vocabulary(tmp_path)
        (tmp_path / name).write_bytes(content)
    assert read_vocabulary(tmp_path).ids == IDS


def test_the_shipped_vocabulary_is_read_once() -> None:
    assert shipped_vocabulary() is vocabulary.shipped_vocabulary()
