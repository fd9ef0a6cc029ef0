"""Forms of one word: British and American spelling, accents, singular and plural."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_WORD = re.compile(r"[^\W_]+")
_POSSESSIVE = re.compile(r"(?<=\w)['\u2019]s\b")

_BRITISH = {
    "aluminum": "aluminium",
    "analog": "analogue",
    "armor": "armour",
    "armored": "armoured",
    "ax": "axe",
    "center": "centre",
    "color": "colour",
    "colored": "coloured",
    "colorful": "colourful",
    "colorless": "colourless",
    "cozy": "cosy",
    "curb": "kerb",
    "donut": "doughnut",
    "fiber": "fibre",
    "flavor": "flavour",
    "gray": "grey",
    "grayish": "greyish",
    "grayscale": "greyscale",
    "harbor": "harbour",
    "jeweled": "jewelled",
    "jewelry": "jewellery",
    "luster": "lustre",
    "meager": "meagre",
    "meter": "metre",
    "mold": "mould",
    "molded": "moulded",
    "moldy": "mouldy",
    "multicolor": "multicolour",
    "multicolored": "multicoloured",
    "mustache": "moustache",
    "neighbor": "neighbour",
    "odor": "odour",
    "pajama": "pyjama",
    "paneled": "panelled",
    "parlor": "parlour",
    "plow": "plough",
    "saber": "sabre",
    "savory": "savoury",
    "scepter": "sceptre",
    "somber": "sombre",
    "sulfur": "sulphur",
    "theater": "theatre",
    "tire": "tyre",
    "vapor": "vapour",
    "woolen": "woollen",
    "wooly": "woolly",
    "checkered": "chequered",
}
_AMERICAN = {british: american for american, british in _BRITISH.items()}

_IRREGULAR = {
    "antennae": "antenna",
    "cacti": "cactus",
    "calves": "calf",
    "children": "child",
    "feet": "foot",
    "firemen": "fireman",
    "fungi": "fungus",
    "geese": "goose",
    "halves": "half",
    "hooves": "hoof",
    "knives": "knife",
    "leaves": "leaf",
    "lives": "life",
    "loaves": "loaf",
    "men": "man",
    "mice": "mouse",
    "oxen": "ox",
    "scarves": "scarf",
    "shelves": "shelf",
    "teeth": "tooth",
    "thieves": "thief",
    "wives": "wife",
    "wolves": "wolf",
    "women": "woman",
}
_IRREGULAR_PLURAL = {singular: plural for plural, singular in _IRREGULAR.items()}

# Words that look like plurals (or singulars) of another word and mean something else.
_NEVER_FOLDED = frozenset(
    {"clothes", "glass", "glasses", "goods", "lens", "new", "news", "pants", "scissors", "series", "species", "cloth"}
)


def words_of(text: str) -> list[str]:
    """The words of a text: NFKC, lower case, possessive 's removed, cut at everything but letters and digits."""
    return _WORD.findall(_POSSESSIVE.sub("", unicodedata.normalize("NFKC", text).lower()))


def singulars(word: str) -> list[str]:
    """Candidate singulars of a plural word, most likely first; empty when it does not look like a plural."""
    if word in _NEVER_FOLDED:
        return []
    if word in _IRREGULAR:
        return [_IRREGULAR[word]]
    found: list[str] = []
    if word.endswith("ies") and len(word) > 4:
        found.append(word[:-3] + "y")
    if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")) and len(word) > 4:
        found.append(word[:-2])
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        found.append(word[:-1])
    return found


def plurals(word: str) -> list[str]:
    """Candidate plurals of a singular word, most likely first."""
    if word in _NEVER_FOLDED:
        return []
    if word in _IRREGULAR_PLURAL:
        return [_IRREGULAR_PLURAL[word]]
    if word.endswith("y") and len(word) > 2 and word[-2] not in "aeiou":
        return [word[:-1] + "ies"]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return [word + "es"]
    return [word + "s", word + "es"] if word.endswith("o") else [word + "s"]


def variants(word: str) -> Iterator[str]:
    """The word and what may stand for it, nearest first: spelling, accents, then number."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))
    spellings = list(dict.fromkeys((word, plain, *(t[plain] for t in (_BRITISH, _AMERICAN) if plain in t))))
    yield from spellings
    for spelling in spellings:
        for single in singulars(spelling):
            yield single
            yield from (t[single] for t in (_BRITISH, _AMERICAN) if single in t)
    for spelling in spellings:
        yield from plurals(spelling)


def british(word: str) -> str:
    """The British spelling of a word, or the word itself."""
    return _BRITISH.get(word, word)
