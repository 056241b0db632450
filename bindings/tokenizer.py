"""CLIP's tokenizer: lower-cased byte-pair encoding of text (Radford et al. 2021, section 2.4; Sennrich et al. 2016).

Ids in order: the 256 bytes, the 256 bytes that end a word, one per merge, start of text, end of text. The end of
text is the highest id, which is how CLIP finds it. With OpenAI's 48,894 merges these are OpenAI's 49,408 ids; with no
merges the tokenizer spells bytes, and needs no file.
"""

import gzip
import heapq
import html
import importlib.util
from pathlib import Path

import numpy as np

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
CLIP_MERGES = 48_894
CONTEXT = 77
IN_A_FOLDER = ("merges.txt", "tokenizer.json")
KEPT, LONGEST = 1 << 20, 64  # words whose ids are remembered, and the letters of the longest

# Specials, English contractions, letters, single digits, and runs of anything else but space.
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def byte_symbols():
    """A printable character for each byte: bytes that print are themselves, the others come after all of those."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


class Tokenizer:
    """Text to ids and back.

    Args:
        merges: pairs of symbols, the first to be merged first; symbols are ``byte_symbols`` or earlier merges, with
            ``</w>`` at a word's end.
    """

    def __init__(self, merges=()):
        self._regex, self._ftfy = _extras()
        merges = [tuple(pair) for pair in merges]
        if wrong := next((pair for pair in merges if len(pair) != 2), None):
            raise ValueError(f"Tokenizer: merge {wrong!r}, expected two symbols")
        self._bytes = byte_symbols()
        symbols = list(self._bytes.values())
        self.vocabulary = [*symbols, *(s + WORD_END for s in symbols), *("".join(p) for p in merges), START, END]
        self._ids = {symbol: i for i, symbol in enumerate(self.vocabulary)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._pattern = self._regex.compile(_PIECES, self._regex.IGNORECASE)
        self._words = {}

    @classmethod
    def from_file(cls, path, limit=CLIP_MERGES):
        """Read at most ``limit`` merges, one pair a line, from a text file or a .gz of one; a header is skipped."""
        raw = Path(path).read_bytes()
        lines = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8").splitlines()
        lines = lines[1:] if lines and "#version" in lines[0] else lines
        return cls(line.split() for line in lines[:limit] if line)

    @classmethod
    def load(cls, source):
        """That of a checkpoint: ``merges.txt`` or ``tokenizer.json`` in a folder; or of "hf:owner/name", a repository
        of the Hugging Face Hub, from which it is downloaded."""
        folder = Path(source)
        if str(source).startswith("hf:"):
            from saccade.weights.hub import fetch_first

            folder = fetch_first(str(source), IN_A_FOLDER).parent
        merges, table = (folder / name for name in IN_A_FOLDER)
        if merges.is_file():
            return cls.from_file(merges)
        if not table.is_file():
            raise ValueError(f"{folder}: none of {', '.join(IN_A_FOLDER)}, which would hold a tokenizer")
        from saccade.weights.sources import malformed, read_json

        with malformed(table, ValueError, KeyError, TypeError, AttributeError):
            model = read_json(table)["model"]
            found = cls(pair.split() if isinstance(pair, str) else pair for pair in model["merges"])
            alike = model["vocab"] == found._ids
        if not alike:
            raise ValueError(f"{table}: its ids are not laid out as CLIP's")
        return found

    @classmethod
    def clip(cls):
        """OpenAI's tokenizer, from the merges that open_clip's package carries (which is not imported)."""
        spec = importlib.util.find_spec("open_clip")
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                'Tokenizer.clip reads the merges in open_clip, which is not installed: pip install "saccade[clip]"'
            )
        return cls.from_file(Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz")

    def __len__(self):
        return len(self.vocabulary)

    @property
    def start(self):
        """The id of the start of text."""
        return len(self) - 2

    @property
    def end(self):
        """The id of the end of text, the highest."""
        return len(self) - 1

    def encode(self, text):
        """The ids of a text, without start and end. The specials' own spellings in a text give their ids."""
        if not isinstance(text, str):
            raise TypeError(f"Tokenizer.encode: a {type(text).__name__}, expected a str")
        ids = []
        for word in (text.lower() if _plain(text) else self.clean(text)).split(" "):
            ids += self._words.get(word) or self._word(word)
        return ids

    def decode(self, ids):
        """The text of ids, specials included, with a space after every word; broken UTF-8 is replaced by U+FFFD."""
        ids = [int(i) for i in ids]
        if wrong := next((i for i in ids if not 0 <= i < len(self)), None):
            raise ValueError(f"Tokenizer.decode: id {wrong}, expected 0…{self.end}")
        byte_of = {symbol: byte for byte, symbol in self._bytes.items()}
        raw = bytes(byte_of[symbol] for symbol in "".join(self.vocabulary[i] for i in ids))
        return raw.decode("utf-8", errors="replace").replace(WORD_END, " ")

    def tokenize(self, texts, context_length=CONTEXT, truncate=False):
        """[start] ids [end] of each text, padded with 0: (texts, context_length) int32.

        Args:
            texts: a str or several.
            context_length: of each row.
            truncate: cut texts that are too long, and end them with [end]; otherwise they are a ValueError.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if context_length < 2:
            raise ValueError(f"Tokenizer.tokenize: {context_length=}, expected at least 2")
        tokens = np.zeros((len(texts), context_length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = [self.start, *self.encode(text), self.end]
            if len(ids) > context_length:
                if not truncate:
                    shown = text if len(text) < 40 else text[:40] + "…"
                    raise ValueError(
                        f"Tokenizer.tokenize: {shown!r} has {len(ids)} tokens, expected at most {context_length=}; "
                        "truncate=True would cut it"
                    )
                ids = [*ids[: context_length - 1], self.end]
            row[: len(ids)] = ids
        return tokens

    def clean(self, text):
        """Mojibake repaired, HTML entities (twice escaped ones too) resolved, white space collapsed, lower case."""
        text = html.unescape(html.unescape(self._ftfy.fix_text(text))).strip()
        return self._regex.sub(r"\s+", " ", text).strip().lower()

    def _word(self, word):
        """The ids of what stands between two spaces; none of its pieces reaches further."""
        if len(self._words) > KEPT:
            self._words.clear()
        ids = [i for piece in self._pattern.findall(word) for i in self._piece(piece)]
        if len(word) <= LONGEST:
            self._words[word] = ids
        return ids

    def _piece(self, piece):
        if piece in (START, END):
            return [self._ids[piece]]
        symbols = [self._bytes[byte] for byte in piece.encode("utf-8")]
        symbols[-1] += WORD_END
        return [self._ids[symbol] for symbol in self._merged(symbols)]

    def _merged(self, symbols):
        """Merge the pair of lowest rank wherever it occurs, from the left, until no pair has a rank."""
        symbols, end = list(symbols), len(symbols)
        before, after = list(range(-1, end - 1)), list(range(1, end + 1))  # what was merged away is skipped

        def ranked(places):
            pairs = ((i, (symbols[i], symbols[after[i]])) for i in places if i >= 0 and after[i] < end)
            return [(self._ranks[pair], i) for i, pair in pairs if pair in self._ranks]

        waiting = ranked(range(end))
        heapq.heapify(waiting)
        while waiting:
            rank, merged = waiting[0][0], []
            while waiting and waiting[0][0] == rank:
                i = heapq.heappop(waiting)[1]
                j = after[i]
                if j < end and self._ranks.get((symbols[i], symbols[j])) == rank:
                    symbols[i], symbols[j], after[i] = symbols[i] + symbols[j], None, after[j]
                    if after[i] < end:
                        before[after[i]] = i
                    merged.append(i)
            for one in ranked({place for i in merged for place in (before[i], i)}):
                heapq.heappush(waiting, one)
        return [symbol for symbol in symbols if symbol is not None]


def _plain(text):
    """Whether ``clean`` would change nothing in a text but its case and repeated spaces."""
    return text.isascii() and text.isprintable() and "&" not in text


def _extras():
    try:
        import ftfy
        import regex
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f'saccade.tokenizer needs {missing.name}, which is not installed: pip install "saccade[models]"'
        ) from None
    return regex, ftfy
