"""The tokenizer: OpenAI's ids from OpenAI's merges, and what holds for any merges."""

import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import twins
from hypothesis import given, strategies as st

from saccade import tokenizer
from saccade.tokenizer import END, START, Tokenizer

MERGES = Path(importlib.util.find_spec("open_clip").submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="module")
def clip():
    return Tokenizer.from_file(MERGES)


@pytest.fixture(scope="module")
def spelling():
    return Tokenizer()


# Seen from OpenAI's own code.
KNOWN = {
    "hello world": [3306, 1002],
    "it's 123 ok": [585, 568, 272, 273, 274, 2481],
    "日本語 text": [39121, 44353, 34002, 508, 4160],
}


@pytest.mark.parametrize("text", KNOWN)
def test_known_texts_have_openais_ids(clip, text):
    assert clip.encode(text) == KNOWN[text]
    assert clip.tokenize(text).tolist() == [[49406, *KNOWN[text], 49407] + [0] * (75 - len(KNOWN[text]))]


def test_the_vocabulary_is_laid_out_as_openais(clip):
    assert len(clip) == 49408 and (clip.start, clip.end) == (49406, 49407)
    assert clip.vocabulary[0] == "!" and clip.vocabulary[256] == "!</w>"
    assert clip.vocabulary[512] == "in" and clip.vocabulary[49405] == "jekyll</w>"
    assert Tokenizer.clip().vocabulary == clip.vocabulary


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("  A  Photo\n of\ta CAT ", "a photo of a cat"),
        ("salt &amp; pepper", "salt & pepper"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("“quoted”", '"quoted"'),
        ("the oﬃce", "the office"),
        ("ＦＵＬＬ width", "full width"),
        ("schÃ¶n", "schön"),
    ],
)
def test_texts_are_cleaned_as_openai_cleans_them(clip, written, plain):
    assert clip.clean(written) == plain
    assert clip.encode(written) == clip.encode(plain)


def test_specials_in_a_text_are_specials(clip):
    assert clip.encode(f"{START} cat {END}") == [clip.start, *clip.encode("cat"), clip.end]


def test_pieces_split_contractions_digits_and_punctuation(spelling):
    words = [text.strip() for text in spelling.decode(spelling.encode("We'll see 42 of 'em!?")).split()]
    assert words == ["we", "'ll", "see", "4", "2", "of", "'", "em", "!?"]


def test_without_merges_ids_are_bytes(spelling):
    assert len(spelling) == 514
    assert spelling.encode("ab") == [spelling.vocabulary.index("a"), spelling.vocabulary.index("b</w>")]


@pytest.mark.parametrize(
    ("merges", "text", "symbols"),
    [
        ([("b", "a"), ("a", "b"), ("ba", "ba")], "abababa", ["a", "baba", "b", "a</w>"]),
        ([("a", "a")], "aaaa", ["aa", "a", "a</w>"]),
    ],
)
def test_merges_apply_lowest_rank_first_everywhere_from_the_left(merges, text, symbols):
    made = Tokenizer(merges)
    assert [made.vocabulary[i] for i in made.encode(text)] == symbols


def plainly_merged(symbols, ranks):
    """As the definition says: all places of the pair of lowest rank, again and again."""
    while pairs := [pair for pair in zip(symbols, symbols[1:], strict=False) if pair in ranks]:
        best, merged, i = min(pairs, key=ranks.__getitem__), [], 0
        while i < len(symbols):
            step = 2 if tuple(symbols[i : i + 2]) == best else 1
            merged.append("".join(symbols[i : i + step]))
            i += step
        symbols = merged
    return symbols


@given(
    st.lists(st.tuples(*[st.sampled_from(["a", "b", "ab", "ba", "aa", "aba", "b</w>"])] * 2), unique=True),
    st.text("ab"),
)
def test_any_merges_apply_as_the_definition_says(merges, text):
    """In any order: a pair of a rank that was passed may come up again."""
    made, symbols = Tokenizer(merges), [*text[:-1], *(f"{x}</w>" for x in text[-1:])]
    assert made._merged(symbols) == plainly_merged(symbols, made._ranks)


def test_a_word_of_a_megabyte_is_spelled_and_refused_in_seconds(clip):
    letters = "".join(np.random.default_rng(0).choice(list("etaoinshr"), 1_000_000))
    with pytest.raises(ValueError, match=r"…' has \d+ tokens, expected at most context_length=77"):
        clip.tokenize(letters)
    assert letters not in clip._words  # of which a million would be remembered


@given(st.text(max_size=40))
def test_decoding_gives_the_pieces_back(spelling, text):
    cleaned = spelling.clean(text)
    decoded = spelling.decode(spelling.encode(text))
    assert "".join(decoded.split()) == "".join(cleaned.split()) or "</w>" in cleaned


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=40))
def test_plain_text_is_what_cleaning_leaves(spelling, text):
    """A text that needs none is not cleaned: as if it had been."""
    assert spelling.encode(text) == spelling.encode(spelling.clean(text) + "\u00a0")


def test_more_words_than_are_kept_have_their_ids_too(monkeypatch):
    monkeypatch.setattr(tokenizer, "KEPT", 2)
    spelling = Tokenizer()
    assert spelling.encode("a b c d a") == [spelling.vocabulary.index(f"{x}</w>") for x in "abcda"]
    assert len(spelling._words) <= 3


def test_a_checkpoints_folder_has_its_tokenizer(clip, tmp_path):
    """As OpenAI's repositories have it, and as transformers writes it."""
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    (tmp_path / "merges.txt").write_text("\n".join(lines[: 1 + tokenizer.CLIP_MERGES]))
    assert Tokenizer.load(tmp_path).vocabulary == clip.vocabulary
    pairs = [tuple(line.split()) for line in lines[1 : 1 + tokenizer.CLIP_MERGES]]
    ids = {symbol: i for i, symbol in enumerate(clip.vocabulary)}
    twins.transformers.CLIPTokenizer(vocab=ids, merges=pairs).save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs" / "merges.txt").exists()
    assert Tokenizer.load(tmp_path / "theirs").vocabulary == clip.vocabulary


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "none of merges.txt, tokenizer.json, which would hold a tokenizer"),
        ("{", "malformed"),
        ("[]", "malformed"),
        ('{"model": {"merges": [["a", "b", "c"]], "vocab": {}}}', "malformed.*expected two symbols"),
        ('{"model": {"merges": ["a b"], "vocab": {"a": 0}}}', "its ids are not laid out as CLIP's"),
    ],
)
def test_what_is_no_tokenizer_is_said(tmp_path, written, message):
    if written is not None:
        (tmp_path / "tokenizer.json").write_text(written)
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(tmp_path)


def test_rows_are_padded_with_0_and_end_with_the_highest_id(clip):
    rows = clip.tokenize(["a cat", "", "a photo of a dog"], context_length=8)
    assert rows.shape == (3, 8) and rows.dtype == np.int32
    assert (rows[:, 0] == clip.start).all() and rows.max(1).tolist() == [clip.end] * 3
    assert rows.argmax(1).tolist() == [3, 1, 6]
    assert (rows[1, 2:] == 0).all()


def test_a_text_too_long_is_refused_or_cut(clip):
    with pytest.raises(ValueError, match=r"'a photo of a dog' has 7 tokens, expected at most context_length=5"):
        clip.tokenize("a photo of a dog", context_length=5)
    cut = clip.tokenize("a photo of a dog", context_length=5, truncate=True)
    assert cut.tolist() == [[clip.start, *clip.encode("a photo of"), clip.end]]


def test_faults_are_told_in_one_sentence(spelling):
    with pytest.raises(TypeError, match="a bytes, expected a str"):
        spelling.encode(b"cat")
    with pytest.raises(ValueError, match="id 514, expected 0…513"):
        spelling.decode([514])
    with pytest.raises(ValueError, match="context_length=1, expected at least 2"):
        spelling.tokenize("cat", context_length=1)
    with pytest.raises(ValueError, match="expected two symbols"):
        Tokenizer([("a", "b", "c")])


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ModuleNotFoundError, match=r'ftfy.*pip install "saccade\[models\]"'):
        Tokenizer()


def test_merges_are_read_from_plain_files_too(tmp_path):
    path = tmp_path / "merges.txt"
    path.write_text("#version: 0.2\nc a\nca t</w>\n", encoding="utf-8")
    made = Tokenizer.from_file(path)
    assert len(made) == 516 and made.encode("cat") == [513]
