"""What is said of a scene in Russian: words agree in gender, case and number."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from captioner.data.scenes.grammar import Scene, Thing

Gender: TypeAlias = Literal["m", "f", "n"]
Case: TypeAlias = Literal["nom", "acc", "gen", "ins"]


class _Noun(NamedTuple):
    """A noun of the singular, by case."""

    gender: Gender
    nom: str
    acc: str
    gen: str
    ins: str


_KINDS = {
    "circle": _Noun("m", "круг", "круг", "круга", "кругом"),
    "square": _Noun("m", "квадрат", "квадрат", "квадрата", "квадратом"),
    "triangle": _Noun("m", "треугольник", "треугольник", "треугольника", "треугольником"),
    "star": _Noun("f", "звезда", "звезду", "звезды", "звездой"),
    "heart": _Noun("n", "сердце", "сердце", "сердца", "сердцем"),
    "cross": _Noun("m", "крест", "крест", "креста", "крестом"),
}
# Stem and kind of the endings in `_ENDINGS`.
_COLOURS = {
    "red": ("красн", "hard"),
    "yellow": ("жёлт", "hard"),
    "green": ("зелён", "hard"),
    "blue": ("син", "soft"),
    "purple": ("фиолетов", "hard"),
    "pink": ("розов", "hard"),
    "black": ("чёрн", "hard"),
}
_SIZES = {"small": ("маленьк", "velar"), "large": ("больш", "stressed")}
# Endings of adjectives: nominative m, f, n, plural; accusative f; genitive m and n, f;
# instrumental m and n, f; genitive plural. The accusative of things is their nominative, but of f.
_ENDINGS = {
    "hard": "ый ая ое ые ую ого ой ым ой ых",
    "soft": "ий яя ее ие юю его ей им ей их",
    "velar": "ий ая ое ие ую ого ой им ой их",
    "stressed": "ой ая ое ие ую ого ой им ой их",
}
_PLACES = {"nom": {"m": 0, "f": 1, "n": 2}, "acc": {"m": 0, "f": 4, "n": 2}}
_PLACES |= {"gen": {"m": 5, "f": 6, "n": 5}, "ins": {"m": 7, "f": 8, "n": 7}}
_PLURAL, _PLURAL_GENITIVE = 3, 9
_HE = {"m": "он", "f": "она", "n": "оно"}
_HIM = {"gen": {"m": "него", "f": "неё", "n": "него"}, "ins": {"m": "ним", "f": "ней", "n": "ним"}}
_COUNTS = {"m": ("", "два", "три", "четыре"), "f": ("", "две", "три", "четыре")}
_COUNTS["n"] = _COUNTS["m"]
_DRAWN = {"m": "нарисован", "f": "нарисована", "n": "нарисовано"}
# Preposition of the first thing's place, its inverse, and the case of both.
_RELATIONS: dict[str, tuple[str, str, Literal["gen", "ins"]]] = {
    "left of": ("слева от", "справа от", "gen"),
    "above": ("над", "под", "ins"),
}
_SUBJECT: tuple[Case, ...] = ("nom", "nom", "nom", "acc")  # of a sentence, by opening


def _adjective(word: tuple[str, str], place: int) -> str:
    stem, kind = word
    return stem + _ENDINGS[kind].split()[place]


def _thing(thing: Thing, case: Case) -> str:
    """Return `маленькая красная звезда` in a case."""
    noun = _KINDS[thing.kind]
    place = _PLACES[case][noun.gender]
    size, colour = _adjective(_SIZES[thing.size], place), _adjective(_COLOURS[thing.colour], place)
    return f"{size} {colour} {getattr(noun, case)}"


def _pair(scene: Scene, case: Case) -> tuple[str, ...]:
    """Return four descriptions of two things; the case is that of the things of the sentence."""
    first, second = scene.things
    there, back, after = _RELATIONS[scene.relation]
    one, two = (_KINDS[thing.kind].gender for thing in scene.things)
    return (
        f"{_thing(first, case)} {there} {_thing(second, after)}",
        f"{_thing(first, case)}, а {back} {_HIM[after][one]} {_thing(second, case)}",
        f"{_thing(second, case)} {back} {_thing(first, after)}",
        f"{_thing(second, case)}, а {there} {_HIM[after][two]} {_thing(first, case)}",
    )


def _group(scene: Scene, case: Case) -> tuple[str, ...]:
    """Return four descriptions of one to four equal things."""
    thing, noun = scene.things[0], _KINDS[scene.things[0].kind]
    gender = noun.gender
    words = _SIZES[thing.size], _COLOURS[thing.colour]
    if scene.count == 1:
        place, kind, number = _PLACES[case][gender], getattr(noun, case), ""
        so = f"и {_HE[gender]} {_adjective(words[0], _PLACES['nom'][gender])}"
    else:
        # After two, three and four: the genitive singular of a noun; adjectives are plural, in
        # the nominative with a feminine noun, else in the genitive.
        place, kind = _PLURAL if gender == "f" else _PLURAL_GENITIVE, noun.gen
        number = f"{_COUNTS[gender][scene.count - 1]} "
        so = f"и все они {_adjective(words[0], _PLURAL)}"
    size, colour = (_adjective(word, place) for word in words)
    measure = _adjective(words[0], _PLACES["gen"]["m"])
    return (
        f"{number}{size} {colour} {kind}",
        f"{number}{size} {colour} {kind} на однотонном фоне",
        f"{number}{colour} {kind}, {so}",
        f"{number}{colour} {kind} {measure} размера",
    )


def sentences(scene: Scene) -> list[list[str]]:
    """Return all true sentences of a scene; see `grammar.sentences`."""
    rows = []
    for opening, case in enumerate(_SUBJECT):
        bodies = _pair(scene, case) if scene.relation else _group(scene, case)
        # The second half of a pair's bodies begins with the second thing.
        subjects = [scene.things[place // 2 if scene.relation else 0] for place in range(4)]
        rows.append(
            [
                _opening(opening, _KINDS[subject.kind].gender, scene.count) + body
                for subject, body in zip(subjects, bodies, strict=True)
            ]
        )
    return rows


def _opening(number: int, gender: Gender, count: int) -> str:
    drawn = _DRAWN[gender] if count == 1 else "нарисованы"
    return ("", f"здесь {drawn} ", "на картинке ", "мы видим ")[number]


def names(thing: Thing) -> frozenset[str]:
    """Return the words that name the kind or the colour of a thing, in all their forms."""
    stem, kind = _COLOURS[thing.colour]
    colours = {stem + ending for ending in _ENDINGS[kind].split()}
    return frozenset({*_KINDS[thing.kind][1:], *colours})
