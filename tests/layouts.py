"""Miniatures of published data sets in their real layout: names, keys and folders.

Each maker writes a data set into an empty folder, with drawn pictures and sentences of its own.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SENTENCES = ("A dog runs.", "A cat sleeps.", "Two birds sing.", "A boy eats.", "A red bus waits.")
GERMAN = ("Ein Hund läuft.", "Eine Katze schläft.", "Zwei Vögel singen.", "Ein Kind isst.")
CHINESE = ("一只狗在跑。", "一只猫在睡觉。", "两只鸟在唱歌。", "一个男孩在吃饭。", "红色的公交车。")

Splits = dict[str, tuple[int, int]]  # images and captions of each split


def picture(path: Path, colour: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (40 * colour % 256, 90, 160)).save(path)


def pictures(folder: Path, names: Iterable[str]) -> None:
    for number, name in enumerate(names):
        picture(folder / name, number)


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="")
    return path


def lines(path: Path, rows: Iterable[str]) -> Path:
    return text(path, "".join(f"{row}\n" for row in rows))


def dump(path: Path, document: object) -> Path:
    return text(path, json.dumps(document, ensure_ascii=False))


def several(number: int, of: Sequence[str] = SENTENCES, count: int = 5) -> list[str]:
    return [of[(number + k) % len(of)] for k in range(count)]


def flickr8k(root: Path) -> None:
    """Flickr8k_text/ beside Flicker8k_Dataset/, as the two archives unpack."""
    names = [f"100026820{n}_693b08cb0e.jpg" for n in range(4)]
    pictures(root / "Flicker8k_Dataset", names)
    folder = root / "Flickr8k_text"
    lines(
        folder / "Flickr8k.token.txt",
        (f"{name}#{k}\t{s}" for n, name in enumerate(names) for k, s in enumerate(several(n))),
    )
    lines(folder / "Flickr8k.lemma.token.txt", (f"{name}#0\tdog run" for name in names))
    for split, part in (("train", names[:2]), ("dev", names[2:3]), ("test", names[3:])):
        lines(folder / f"Flickr_8k.{split}Images.txt", part)


def flickr8k_kaggle(root: Path) -> None:
    names = [f"100026820{n}_693b08cb0e.jpg" for n in range(4)]
    pictures(root / "Images", names)
    rows = [f"{name},{s}" for n, name in enumerate(names) for s in several(n)]
    lines(root / "captions.txt", ["image,caption", *rows])


def flickr30k(root: Path) -> None:
    names = [f"{1000092795 + n}.jpg" for n in range(4)]
    pictures(root / "flickr30k_images", names)
    rows = [f"{name}| {k}| {s}" for n, name in enumerate(names) for k, s in enumerate(several(n))]
    lines(root / "results.csv", ["image_name| comment_number| comment", *rows])


def karpathy(root: Path) -> None:
    splits = ("train", "restval", "val", "test")
    names = [f"COCO_val2014_{391895 + n:012d}.jpg" for n in range(4)]
    pictures(root / "val2014", names)
    images = [
        {
            "filepath": "val2014",
            "filename": name,
            "imgid": n,
            "split": splits[n],
            "cocoid": 391895 + n,
            "sentids": [5 * n + k for k in range(5)],
            "sentences": [
                {"tokens": s.lower().strip(".").split(), "raw": s, "imgid": n, "sentid": 5 * n + k}
                for k, s in enumerate(several(n))
            ],
        }
        for n, name in enumerate(names)
    ]
    dump(root / "dataset_coco.json", {"images": images, "dataset": "coco"})


def _coco(
    file: Path, ids: Sequence[int], name: str, of: Sequence[str] = SENTENCES, **more: object
) -> None:
    images = [
        {"license": 4, "file_name": name.format(i), "coco_url": "", "height": 32, "width": 32}
        | {"date_captured": "2013-11-14 17:02:52", "id": i}
        for i in ids
    ]
    annotations = [
        {"image_id": i, "id": 10 * i + k, "caption": s, **more}
        for i in ids
        for k, s in enumerate(several(i, of))
    ]
    document = {"info": {}, "images": images, "licenses": [], "annotations": annotations}
    dump(file, document)


def coco(root: Path) -> None:
    for split, ids in (("train", (1, 2, 3)), ("val", (4,))):
        _coco(root / "annotations" / f"captions_{split}2017.json", ids, "{:012d}.jpg")
        pictures(root / f"{split}2017", [f"{i:012d}.jpg" for i in ids])
    images = [{"id": 9, "file_name": "000000000009.jpg", "height": 32, "width": 32}]
    info = {"info": {}, "images": images, "licenses": [], "categories": []}
    dump(root / "annotations" / "image_info_test2017.json", info)
    picture(root / "test2017" / "000000000009.jpg")
    dump(root / "annotations" / "instances_val2017.json", {**info, "annotations": []})


def stair(root: Path) -> None:
    """STAIR Captions: COCO's form and images, Japanese, beside a file with tokens."""
    japanese = (
        "犬が走っている",
        "猫が寝ている",
        "鳥が歌っている",
        "男の子が食べている",
        "バスが待つ",
    )
    for split, ids in (("train", (1, 2)), ("val", (3,))):
        name = f"COCO_{split}2014_{{:012d}}.jpg"
        for tokenized in ("", "_tokenized"):
            file = root / f"stair_captions_v1.2_{split}{tokenized}.json"
            _coco(file, ids, name, japanese)
        pictures(root / f"{split}2014", [name.format(i) for i in ids])


def vizwiz(root: Path) -> None:
    canned = "Quality issues are too severe to recognize visual content."
    for split, ids in (("train", (0, 1, 2)), ("val", (3,)), ("test", (4,))):
        names = [f"VizWiz_{split}_{i:08d}.jpg" for i in ids]
        pictures(root / split, names)
        images = [
            {"file_name": name, "vizwiz_url": "", "id": i, "text_detected": False}
            for name, i in zip(names, ids, strict=True)
        ]
        annotations = [
            {"caption": canned if k == 4 else s, "image_id": i, "is_precanned": k == 4}
            | {"is_rejected": False, "id": 5 * i + k, "text_detected": False}
            for i in ids
            for k, s in enumerate(several(i))
        ]
        document = {"info": {}, "images": images, "annotations": annotations}
        if split == "test":
            del document["annotations"]
        dump(root / "annotations" / f"{split}.json", document)


def nocaps(root: Path) -> None:
    names = ["0013ea2087020901.jpg", "0014b4a3b4c1a2d3.jpg", "00184a8dfe2b9d0e.jpg"]
    images = [
        {"coco_url": "", "date_captured": "2018", "file_name": name, "height": 32, "id": n}
        | {"license": 0, "open_images_id": name[:16], "width": 32, "domain": "near-domain"}
        for n, name in enumerate(names)
    ]
    annotations = [
        {"image_id": n, "id": 10 * n + k, "caption": s}
        for n in range(3)
        for k, s in enumerate(several(n, count=10))
    ]
    head = {"licenses": [], "info": {}}
    dump(
        root / "nocaps_val_4500_captions.json",
        {**head, "images": images} | {"annotations": annotations},
    )
    dump(root / "nocaps_val_image_info.json", {**head, "images": images})
    other = [images[0] | {"id": 4500, "file_name": "000d5b8b2a1b3c4d.jpg"}]
    dump(root / "nocaps_test_image_info.json", {**head, "images": other})
    pictures(root / "images", [*names, "000d5b8b2a1b3c4d.jpg"])


def textcaps(root: Path) -> None:
    """TextCaps: `val` has its images among those of train; test has no captions."""
    places = {"train": ("00aa", "00ab"), "val": ("00ba",), "test": ("00ca", "0054139705212005")}
    for split, ids in places.items():
        folder = "test_images" if split == "test" else "train_images"
        pictures(root / folder, [f"{i}.jpg" for i in ids])
        rows = [
            {"image_id": i, "image_classes": ["Dog"], "flickr_original_url": "https://x/a.jpg"}
            | {"image_width": 32, "image_height": 32, "set_name": split, "image_name": i}
            | {"image_path": f"{'test' if split == 'test' else 'train'}/{i}.jpg"}
            | (
                {"caption_id": k, "caption_str": s, "reference_strs": several(n)}
                if split != "test"
                else {}
            )
            for n, i in enumerate(ids)
            for k, s in enumerate(several(n) if split != "test" else [""])
        ]
        head = {"dataset_type": split, "dataset_name": "textcaps", "dataset_version": "0.1"}
        dump(root / f"TextCaps_0.1_{split}.json", {**head, "data": rows})


def conceptual(root: Path) -> None:
    """Conceptual Captions: caption, tab, URL, without a header and without pictures."""
    rows = [f"{s}\thttps://example.org/photos/{n}.jpg" for n, s in enumerate(SENTENCES)]
    lines(root / "Train_GCC-training.tsv", rows)
    lines(root / "Validation_GCC-1.1.0-Validation.tsv", rows[:2])


def conceptual12m(root: Path) -> None:
    lines(
        root / "cc12m.tsv", (f"https://example.org/{n}.jpg\t{s}" for n, s in enumerate(SENTENCES))
    )


def blip(root: Path) -> None:
    names = [f"COCO_val2014_{n:012d}.jpg" for n in range(4)]
    pictures(root / "val2014", names)
    rows = [
        {"caption": s, "image": f"val2014/{name}", "image_id": f"coco_{n}"}
        for n, name in enumerate(names[:2])
        for s in several(n)
    ]
    dump(root / "coco_karpathy_train.json", rows)
    for split, name in (("val", names[2]), ("test", names[3])):
        row = {"image": f"val2014/{name}", "caption": several(2)}
        dump(root / f"coco_karpathy_{split}.json", [row])


def multi30k(root: Path) -> None:
    """Task 1: one line of each language for each line of the split list."""
    splits = {"train": (0, 1, 2), "val": (3,), "test_2016_flickr": (4,)}
    for split, ids in splits.items():
        names = [f"{1000092795 + n}.jpg" for n in ids]
        pictures(root / "flickr30k-images", names)
        lines(root / "data/task1/image_splits" / f"{split}.txt", names)
        for language, of in (("en", SENTENCES), ("de", GERMAN)):
            lines(root / "data/task1/raw" / f"{split}.{language}", (of[n % len(of)] for n in ids))


def multi30k_task2(root: Path) -> None:
    """Task 2: five files of a language, each with one caption of each image."""
    for split, ids in {"train": (0, 1, 2), "val": (3,), "test_2016": (4,)}.items():
        names = [f"{1000092795 + n}.jpg" for n in ids]
        pictures(root / "images", names)
        lines(root / f"{split}_images.txt", names)
        for k in range(1, 6):
            lines(root / f"{split}.{k}.de", (GERMAN[(n + k) % len(GERMAN)] for n in ids))


def multi30k_flat(root: Path) -> None:
    """The files of one language in one folder."""
    for split, ids in {"train": (0, 1, 2), "val": (3,)}.items():
        names = [f"{1000092795 + n}.jpg" for n in ids]
        pictures(root / "images", names)
        lines(root / f"{split}_images.txt", names)
        lines(root / f"{split}.de", (GERMAN[n] for n in ids))


def aic(root: Path) -> None:
    parts = (("train", "train", "20170902", (0, 1)), ("validation", "validation", "20170910", (2,)))
    for split, word, date, ids in parts:
        folder = root / f"ai_challenger_caption_{word}_{date}"
        names = [f"8f00f3d0f1008e085ab660e70dffced16a8259f{n}.jpg" for n in ids]
        pictures(folder / f"caption_{split}_images_{date}", names)
        rows = [
            {"url": f"http://img5.cache.netease.com/{n}.jpg", "image_id": name}
            | {"caption": several(n, CHINESE)}
            for n, name in enumerate(names)
        ]
        dump(folder / f"caption_{split}_annotations_{date}.json", rows)


def coco_cn(root: Path) -> None:
    ids = [f"COCO_val2014_{391895 + n:012d}" for n in range(3)]
    pictures(root / "images", [f"{i}.jpg" for i in ids])
    rows = (
        f"{i}#{k}\t{s}" for n, i in enumerate(ids) for k, s in enumerate(several(n, CHINESE, 2))
    )
    lines(root / "imageid.human-written-caption.txt", rows)
    for split, part in (("train", ids[:1]), ("val", ids[1:2]), ("test", ids[2:])):
        lines(root / f"coco-cn_{split}.txt", part)


def flickr8k_cn(root: Path) -> None:
    names = [f"100026820{n}_693b08cb0e.jpg" for n in range(3)]
    pictures(root / "images", names)
    rows = (
        f"{name}#zhc#{k} {s}"
        for n, name in enumerate(names)
        for k, s in enumerate(several(n, CHINESE))
    )
    lines(root / "flickr8kzhc.caption.txt", rows)


def table(root: Path) -> None:
    pictures(root / "images", [f"{n}.jpg" for n in range(3)])
    with (root / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [(f"{n}.jpg", s, ("train", "val")[n == 2]) for n in range(3) for s in several(n)]
        csv.writer(file).writerows([("image", "caption", "split"), *rows])


def excel(root: Path) -> None:
    """What Excel saves as "Unicode text": UTF-16 with tabs."""
    pictures(root, [f"{n}.jpg" for n in range(3)])
    rows = [f"{n}.jpg\t{GERMAN[n]}\r\n" for n in range(3)]
    (root / "captions.tsv").write_bytes("".join(["image\tcaption\r\n", *rows]).encode("utf-16"))


def imagefolder(root: Path) -> None:
    for split, numbers in (("train", (0, 1)), ("validation", (2,))):
        pictures(root / split, [f"{n}.png" for n in numbers])
        rows = (json.dumps({"file_name": f"{n}.png", "text": SENTENCES[n]}) for n in numbers)
        lines(root / split / "metadata.jsonl", rows)


def sidecars(root: Path) -> None:
    for folder, numbers in (("train/dogs", (0, 1)), ("val", (2,))):
        for n in numbers:
            picture(root / folder / f"{n}.png", n)
            lines(root / folder / f"{n}.{('txt', 'caption')[n % 2]}", several(n, count=2))


def kohya(root: Path) -> None:
    """kohya's metadata beside the folder of pictures; its keys are the names without ending."""
    pictures(root / "img", [f"{n:05d}.png" for n in range(3)])
    rows = {
        f"{n:05d}": {"caption": SENTENCES[n], "tags": "1girl, smile", "train_resolution": [32, 32]}
        for n in range(3)
    }
    dump(root / "meta_lat.json", rows)
    dump(root / "meta_cap.json", {key: {"caption": row["caption"]} for key, row in rows.items()})


@dataclass(frozen=True)
class Layout:
    """A published layout.

    Attributes:
        name: for people.
        make: writes a miniature.
        format: the format that captioner detects.
        splits: images and captions of each split.
        root: what `data.root` names, below the folder of the miniature.
        set: further settings of `data`.
    """

    name: str
    make: Callable[[Path], None]
    format: str
    splits: Splits
    root: str = "."
    set: tuple[tuple[str, str], ...] = ()


FIVE = {"train": (2, 10), "dev": (1, 5), "test": (1, 5)}
GERMAN_ONLY = (("caption_column", "de"),)
PARALLEL = {"train": (3, 3), "dev": (1, 1)}

LAYOUTS = (
    Layout("Flickr8k, as published", flickr8k, "flickr", FIVE),
    Layout("Flickr8k, on Kaggle", flickr8k_kaggle, "flickr", {"train": (4, 20)}),
    Layout("Flickr30k", flickr30k, "flickr", {"train": (4, 20)}),
    Layout("Flickr8k-CN", flickr8k_cn, "flickr", {"train": (3, 15)}),
    Layout("COCO-CN", coco_cn, "flickr", {"train": (1, 2), "dev": (1, 2), "test": (1, 2)}),
    Layout("Karpathy splits", karpathy, "karpathy", FIVE | {"train": (1, 5), "restval": (1, 5)}),
    Layout("COCO captions", coco, "coco", {"train": (3, 15), "dev": (1, 5)}),
    Layout("STAIR Captions", stair, "coco", {"train": (2, 10), "dev": (1, 5)}),
    Layout("VizWiz-Captions", vizwiz, "coco", {"train": (3, 12), "dev": (1, 4)}),
    Layout("nocaps", nocaps, "coco", {"dev": (3, 30)}),
    Layout("TextCaps", textcaps, "jsonl", {"train": (2, 10), "dev": (1, 5)}),
    Layout("BLIP, LAVIS", blip, "jsonl", FIVE),
    Layout("AI Challenger", aic, "jsonl", {"train": (2, 10), "dev": (1, 5)}),
    Layout("Multi30k, task 1", multi30k, "multi30k", PARALLEL | {"test": (1, 1)}, set=GERMAN_ONLY),
    Layout("Multi30k, task 2", multi30k_task2, "multi30k", FIVE | {"train": (3, 15)}),
    Layout("Multi30k, one language", multi30k_flat, "multi30k", PARALLEL),
    Layout("CSV", table, "csv", {"train": (2, 10), "dev": (1, 5)}),
    Layout("Excel's Unicode text", excel, "csv", {"train": (3, 3)}),
    Layout("Hugging Face's imagefolder", imagefolder, "jsonl", {"train": (2, 2), "dev": (1, 1)}),
    Layout("texts beside images", sidecars, "sidecars", {"train": (2, 4), "dev": (1, 2)}),
    Layout("kohya", kohya, "kohya", {"train": (3, 3)}),
    Layout("kohya, folder of images", kohya, "kohya", {"train": (3, 3)}, "img"),
)
