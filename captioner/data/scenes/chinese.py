"""What is said of a scene in Chinese."""

from __future__ import annotations

from captioner.data.scenes.grammar import Scene, Thing

_KINDS = {
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "star": "星形",
    "heart": "心形",
    "cross": "十字形",
}
_COLOURS = {
    "red": "红色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "black": "黑色",
}
_SIZES = {"small": "小", "large": "大"}
_COUNTS = ("一个", "两个", "三个", "四个")
# Where the first thing is of the second, and the second of the first.
_RELATIONS = {"left of": ("左边", "右边"), "above": ("上面", "下面")}
_OPENINGS = ("", "这里有", "图片中是", "我们看到")


def _thing(thing: Thing, count: int = 1) -> str:
    size, colour, kind = _SIZES[thing.size], _COLOURS[thing.colour], _KINDS[thing.kind]
    return f"{_COUNTS[count - 1]}{size}的{colour}{kind}"


def _bodies(scene: Scene) -> tuple[str, ...]:
    """Return four descriptions of the scene."""
    if scene.relation:
        first, second = map(_thing, scene.things)
        there, back = _RELATIONS[scene.relation]
        return (
            f"{first}在{second}的{there}",
            f"{first}，它的{back}有{second}",
            f"{second}在{first}的{back}",
            f"{second}，它的{there}有{first}",
        )
    thing, count = scene.things[0], scene.count
    size, colour, kind = _SIZES[thing.size], _COLOURS[thing.colour], _KINDS[thing.kind]
    number = _COUNTS[count - 1]
    return (
        _thing(thing, count),
        f"{_thing(thing, count)}，背景是单色的",
        f"{number}{colour}{kind}，{'它' if count == 1 else '它们都'}很{size}",
        f"{number}{size}尺寸的{colour}{kind}",
    )


def sentences(scene: Scene) -> list[list[str]]:
    """Return all true sentences of a scene; see `grammar.sentences`."""
    return [[opening + body for body in _bodies(scene)] for opening in _OPENINGS]


def names(thing: Thing) -> frozenset[str]:
    """Return the characters that name the kind or the colour of a thing and count nothing."""
    return frozenset(_KINDS[thing.kind] + _COLOURS[thing.colour]) - {"三", "十", "色"}
