"""A knowledge graph that every Python carries: characters and their properties, from ``unicodedata``.

Entities are characters, named as Unicode names them, and values such as a script or a number. The facts come
from the frozen Unicode 3.2 database that every Python ships for the sake of IDNA, so every version builds the
same graph; nothing is downloaded. What each relation says, how many triples it has and how they are split:
docs/unicode-graph.md.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

from croppable.kge.triples import KnowledgeGraph, graph_from_triples

__all__ = ["unicode_graph"]

Triple = tuple[str, str, str]

_UCD = unicodedata.ucd_3_2_0
# Ideographs and Hangul syllables have no names of their own; the others are long series of their own kind.
_LEFT_OUT = (
    "ARABIC LIGATURE", "BRAILLE", "BYZANTINE", "CANADIAN", "CJK", "HANGUL SYLLABLE", "IDEOGRAPHIC TELEGRAPH",
    "KANGXI", "MUSICAL", "OLD ITALIC", "RUNIC", "SQUARE", "TAG ", "YI ",
)  # fmt: skip
# Scripts whose letters have names of their own, and scripts whose letters are named by their sound.
_ALPHABETS = frozenset({
    "ARABIC", "ARMENIAN", "BOPOMOFO", "CYRILLIC", "DESERET", "GEORGIAN", "GOTHIC", "GREEK", "HANGUL",
    "HEBREW", "LATIN", "MONGOLIAN", "OGHAM", "SYRIAC", "THAANA", "THAI",
})  # fmt: skip
_SYLLABARIES = frozenset({
    "BENGALI", "BUHID", "CHEROKEE", "DEVANAGARI", "ETHIOPIC", "GUJARATI", "GURMUKHI", "HANUNOO",
    "HIRAGANA", "KANNADA", "KATAKANA", "KHMER", "LAO", "MALAYALAM", "MYANMAR", "ORIYA", "SINHALA",
    "TAGALOG", "TAGBANWA", "TAMIL", "TELUGU", "TIBETAN",
})  # fmt: skip
_CATEGORY = {
    "Cf": "format control", "Ll": "lowercase letter", "Lm": "modifier letter", "Lt": "titlecase letter",
    "Lu": "uppercase letter", "Mc": "spacing mark", "Me": "enclosing mark", "Mn": "nonspacing mark",
    "Nd": "decimal digit", "Nl": "letter number", "No": "other number", "Pc": "connector punctuation",
    "Pd": "dash punctuation", "Pe": "closing punctuation", "Pf": "final quote", "Pi": "initial quote",
    "Po": "other punctuation", "Ps": "opening punctuation", "Sc": "currency symbol", "Sk": "modifier symbol",
    "Sm": "math symbol", "So": "other symbol", "Zs": "space",
}  # fmt: skip
_WIDTH = {"A": "ambiguous", "F": "fullwidth", "H": "halfwidth", "Na": "narrow", "W": "wide"}
_BIDI = {
    "AL": "right-to-left Arabic", "AN": "Arabic number", "CS": "common separator", "EN": "European number",
    "ES": "European separator", "ET": "European terminator", "NSM": "nonspacing mark", "R": "right-to-left",
}  # fmt: skip
_NO_WORDS = frozenset({"AND", "FOR", "FROM", "IN", "OF", "OR", "SIGN", "SYMBOL", "THE", "TO", "WITH"})
_LETTER = re.compile(
    r"\b(?:LETTER|SYLLABLE|SYLLABICS|VOWEL SIGN|CHOSEONG|JUNGSEONG|JONGSEONG) (?:.*? )??(\S+)(?: WITH .*)?$"
)
_SYLLABLE = re.compile(r"([^AEIOU]*)([AEIOU].*)")
_STYLE = re.compile(r"MATHEMATICAL (.+?) (?:CAPITAL|SMALL|DIGIT)")


def _character(char: str) -> str:
    return f"U+{ord(char):04X}"


def _script(name: str) -> str | None:
    first = name.replace("-", " ").split()[0]  # "ARABIC-INDIC DIGIT THREE" is Arabic
    return first if first in _ALPHABETS or first in _SYLLABARIES else None


def _parts(char: str) -> list[str]:
    """Return what a character decomposes into."""
    return [f"U+{field}" for field in _UCD.decomposition(char).split() if not field.startswith("<")]


def _following(char: str, script: str) -> str | None:
    """Return the next character of the same script and category, up to 3 code points on.

    Capital and small letters alternate in places, as do plain and voiced kana. A character is passed over if
    one of the two decomposes into the other: "base" or "mark" would say the same, turned round.
    """
    wanted = (script, _UCD.category(char))
    for code in range(ord(char) + 1, ord(char) + 4):
        following = chr(code)
        alike = (_script(_UCD.name(following, "none")), _UCD.category(following)) == wanted
        if alike and _character(following) not in _parts(char) and _character(char) not in _parts(following):
            return following
    return None


def _form_facts(char: str) -> Iterator[tuple[str, str]]:
    """Facts from the decomposition: base and mark where it is canonical, else what it is a variant of."""
    parts = [part for part in _parts(char) if part != "U+0020"]
    if not parts:
        return
    decomposition = _UCD.decomposition(char)
    kind = decomposition[1 : decomposition.index(">")] if decomposition.startswith("<") else None
    if kind is not None:
        yield "form", f"form:{kind}"
    if len(parts) == 1:
        yield "variant of", parts[0]
    elif kind is None:
        yield "base", parts[0]
        yield "mark", parts[1]
    else:
        for part in parts:
            yield "spelled with", part


def _name_facts(char: str, name: str, by_name: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Facts that the character's name tells."""
    script = _script(name)
    if script:
        yield "script", f"script:{script}"
    letter = _LETTER.search(name)
    if letter and script in _SYLLABARIES and (syllable := _SYLLABLE.fullmatch(letter[1])):
        yield "onset", f"onset:{syllable[1] or 'none'}"
        yield "rime", f"rime:{syllable[2]}"
    elif letter and script and not _UCD.decomposition(char):
        yield "letter", f"letter:{letter[1]}"
    if style := _STYLE.match(name):
        yield "style", f"style:{style[1]}"
    if " SMALL " in name and (upper := by_name.get(name.replace(" SMALL ", " CAPITAL ", 1))):
        yield "upper case", _character(upper)
    if "LEFT" in name and "RIGHT" not in name and (mirror := by_name.get(name.replace("LEFT", "RIGHT"))):
        yield "mirror image", _character(mirror)
    if _UCD.category(char)[0] in "SP":
        for word in name.split():
            if word not in _NO_WORDS:
                yield "described as", f"word:{word}"
    if script and (following := _following(char, script)):
        yield "next", _character(following)


def _property_facts(char: str) -> Iterator[tuple[str, str]]:
    """Facts from the tables of properties; the default of a property is no fact."""
    if category := _CATEGORY.get(_UCD.category(char)):
        yield "category", f"category:{category}"
    if width := _WIDTH.get(_UCD.east_asian_width(char)):
        yield "width", f"width:{width}"
    if direction := _BIDI.get(_UCD.bidirectional(char)):
        yield "direction", f"direction:{direction}"
    if combining := _UCD.combining(char):
        yield "combining class", f"combining class:{combining}"
    if (number := _UCD.numeric(char, None)) is not None:
        yield "number", f"number:{number:g}"


def _facts() -> list[Triple]:
    """Return every fact, in the order of the characters."""
    names = {}
    for code in range(0x20000):
        name = _UCD.name(chr(code), None)
        if name and not name.startswith(_LEFT_OUT):
            names[chr(code)] = name
    by_name = {name: char for char, name in names.items()}
    facts = (
        (_character(char), relation, tail)
        for char, name in names.items()
        for found in (_property_facts(char), _form_facts(char), _name_facts(char, name, by_name))
        for relation, tail in found
    )
    return list(dict.fromkeys(facts))


def _frequent(facts: list[Triple]) -> list[Triple]:
    """Drop characters with fewer than 4 facts and values with fewer than 5, until there are none."""
    while True:
        count = Counter(entity for head, _, tail in facts for entity in (head, tail))
        rare = {entity for entity, n in count.items() if n < (4 if entity.startswith("U+") else 5)}
        kept = [fact for fact in facts if fact[0] not in rare and fact[2] not in rare]
        if len(kept) == len(facts):
            return kept
        facts = kept


def _split(facts: list[Triple], seed: int) -> tuple[list[Triple], list[Triple], list[Triple]]:
    """Give a twentieth each to test and valid by a hash, so long as train keeps two facts of every entity."""

    def digest(fact: Triple) -> bytes:
        return hashlib.sha256("\t".join((str(seed), *fact)).encode()).digest()

    count = Counter(entity for head, _, tail in facts for entity in (head, tail))
    train: list[Triple] = []
    held_out: list[Triple] = []
    wanted = len(facts) // 20
    for fact in sorted(facts, key=digest):
        head, _, tail = fact
        if len(held_out) < 2 * wanted and min(count[head], count[tail]) > 2:
            count.subtract((head, tail))
            held_out.append(fact)
        else:
            train.append(fact)
    return train, held_out[:wanted], held_out[wanted:]


def _label(entity: str) -> str:
    """Return "\u00e9 LATIN SMALL LETTER E WITH ACUTE" for a character, "script GREEK" for a value."""
    if not entity.startswith("U+"):
        return entity.replace(":", " ", 1)
    char = chr(int(entity[2:], 16))
    kind = _UCD.category(char)[0]
    # A mark needs something to sit on; a space or a format control shows nothing.
    shown = "\u25cc" + char if kind == "M" else entity if kind in "CZ" else char
    return f"{shown} {_UCD.name(char)}"


def unicode_graph(seed: int = 0) -> KnowledgeGraph:
    """Build the graph of Unicode 3.2's characters and their properties.

    The same under every Python version and on every machine; it takes about a second and no network.
    Nine tenths of the triples are train, a twentieth each valid and test, drawn by a hash of seed and triple
    such that train has at least two facts of every entity. No relation is the inverse of another.

    Args:
        seed: Draws another split of the same triples.

    Returns:
        The graph; entities are named "U+00E9" or "script:GREEK", and ``entity_labels`` show the characters.
    """
    facts = _frequent(_facts())
    labels = {entity: _label(entity) for head, _, tail in facts for entity in (head, tail)}
    train, valid, test = _split(facts, seed)
    return graph_from_triples(train, valid, test, name="unicode", entity_labels=labels)
