import io
import json
import math
import multiprocessing
import pickle
import tempfile
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from captioner.captioner import Captioner
from captioner.config import DecodingConfig, DecodingOverrides
from captioner.errors import ConfigError, ImageError, ModelError
from captioner.images.accept import to_picture

import toys

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")


PICTURES = [Image.new("RGB", (30, 40), colour) for colour in ("red", "blue", "green")] * 7


@pytest.fixture(scope="module")
def captioner():
    return toys.captioner(cell="lstm", num_layers=1, seed=18)  # a caption for each colour


@pytest.fixture
def folder(captioner, tmp_path):
    captioner.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def picture(tmp_path):
    return toys.draw(tmp_path / "red.png", "red")


def test_a_model_directory_is_all_it_takes(captioner, folder, picture):
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "vocab.json",
    ]
    back = Captioner.load(folder, "cpu")
    features = captioner.encode([Image.open(picture).convert("RGB")])
    assert torch.equal(back.encode([Image.open(picture).convert("RGB")]), features)
    assert back.search(features, n_best=3) == captioner.search(features, n_best=3)
    assert back.decoding == captioner.decoding
    assert back.vocabulary == captioner.vocabulary


@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize("cell", ["rnn", "gru", "elman"])
def test_every_decoder_survives_the_disk(cell, tie_weights, tmp_path):
    before = toys.captioner(cell=cell, num_layers=2, tie_weights=tie_weights)
    before.save(tmp_path)
    after = Captioner.load(tmp_path, "cpu")
    for name, tensor in before.decoder.state_dict().items():
        assert torch.equal(tensor, after.decoder.state_dict()[name]), name


def test_a_run_directory_stands_for_its_model(folder):
    assert Captioner.load(folder.parent, "cpu").vocabulary == toys.vocabulary()


def test_saving_again_replaces_the_directory(captioner, folder):
    before = folder.stat().st_ino
    captioner.save(folder)
    assert folder.stat().st_ino != before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_images_come_in_every_shape_people_hold_them_in(captioner, picture):
    image = Image.open(picture).convert("RGB")
    array = np.asarray(image)
    expected = captioner.caption(str(picture))
    assert isinstance(expected, str)
    for same in (
        picture,
        picture.read_bytes(),
        io.BytesIO(picture.read_bytes()),
        image,
        array,
        array.transpose(2, 0, 1),
        array.astype(np.float32) / 255,
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255,
    ):
        assert captioner.caption(same) == expected
    assert isinstance(captioner.caption(array[:, :, 0]), str)  # grey


def test_many_images_are_read_as_captions_are_asked_for(captioner, picture):
    read = []

    def images():
        for i in range(10):
            read.append(i)
            yield picture

    captions = captioner.caption(images(), batch_size=3)
    assert read == []
    first = next(captions)
    assert read == [*range(9)]  # one batch that is captioned, two that are read meanwhile
    assert [first, *captions] == [captioner.caption(picture)] * 10


def test_captions_are_ranked_and_never_hold_special_tokens(captioner, picture):
    features = captioner.encode([Image.open(picture).convert("RGB")] * 2)
    options = captioner.settings(beam_size=5, length_penalty=0.5)
    for captions in captioner.search(features, options, n_best=5):
        scores = [caption.score for caption in captions]
        assert scores == sorted(scores, reverse=True)
        assert len({caption.text for caption in captions}) == len(captions) == 5
        assert all(caption.log_prob < 0 for caption in captions)
        assert not any("<" in caption.text for caption in captions)


def test_an_unknown_word_is_never_written_even_if_it_is_the_likeliest(picture):
    captioner = toys.captioner(tie_weights=False)
    words = captioner.vocabulary
    with torch.no_grad():
        captioner.decoder.output.bias[[words.unk_id, words.bos_id, words.pad_id]] = 50.0
        captioner.decoder.output.bias[words.eos_id] = -50.0
    features = captioner.encode([Image.open(picture).convert("RGB")])
    for wish in ({"beam_size": 1}, {"beam_size": 4}, {"temperature": 1.0, "search": "sample"}):
        (best,) = captioner.search(features, captioner.settings(max_length=6, **wish))[0]
        # it never ends either: cut off at six words, and still a caption
        assert len(best.text.split()) == 6
        assert not best.finished
        assert set(best.text.split()) <= set(words.words)


def test_weights_are_laid_out_once_for_each_precision(monkeypatch):
    captioner, made = toys.captioner(), []
    stepper = captioner.decoder.stepper
    monkeypatch.setattr(
        captioner.decoder, "stepper", lambda dtype: made.append(dtype) or stepper(dtype)
    )
    features = torch.randn(3, captioner.encoder.feature_size)
    for precision in ("fp32", "bf16", "fp32", "bf16"):
        captioner.search(features, captioner.settings(precision=precision))
    assert made == [torch.float32, torch.bfloat16]
    captioner.to("cpu").search(features, captioner.settings(precision="fp32"))
    assert made == [torch.float32, torch.bfloat16, torch.float32]


def test_sampling_is_seeded(captioner, picture):
    features = captioner.encode([Image.open(picture).convert("RGB")])

    def draw(seed):
        options = captioner.settings(search="sample", top_p=0.9, seed=seed)
        return captioner.search(features, options, n_best=8)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_log_prob_is_the_sum_over_the_tokens(captioner, picture):
    features = captioner.encode([Image.open(picture).convert("RGB")])
    (best,) = captioner.search(features, captioner.settings(beam_size=3, length_penalty=1.0))[0]
    words = captioner.vocabulary
    ids = [words.bos_id, *words.encode(best.text.split()), words.eos_id]
    with torch.inference_mode():
        logits, _ = captioner.decoder(
            torch.tensor([ids[:-1]]), captioner.decoder.init_hidden(features)
        )
    log_probs = logits[0].log_softmax(-1)
    total = sum(log_probs[i, token].item() for i, token in enumerate(ids[1:]))
    if not best.finished:
        total -= log_probs[-1, words.eos_id].item()
    length = len(ids) - 1 if best.finished else len(ids) - 2
    assert best.log_prob == pytest.approx(total, rel=1e-5)
    assert best.score == pytest.approx(total / length, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "decoding.beam_size.*given 0"),
        ({"length_penalty": -1}, "decoding.length_penalty.*given -1"),
        ({"beams": 3}, "decoding.beams"),
        ({"n_best": 4, "beam_size": 3}, "n_best: must be 1 to the beam size"),
    ],
)
def test_impossible_settings_are_named(captioner, options, message):
    with pytest.raises(ConfigError, match=message):
        captioner.settings(**options)


def test_a_search_that_does_not_fit_the_model_is_refused(captioner):
    features = torch.zeros(1, 512)
    with pytest.raises(ConfigError, match=r"n_best: must be 1 to the beam size \(3\), given 4"):
        captioner.search(features, DecodingConfig(beam_size=3), n_best=4)
    with pytest.raises(ConfigError, match="stores no training captions"):
        captioner.search(features, DecodingConfig(neighbours=1.0))


def test_a_broken_image_is_one_clear_error(captioner, tmp_path):
    with pytest.raises(ImageError, match="cannot be read"):
        captioner.caption(tmp_path / "nothing.jpg")
    with pytest.raises(ImageError, match="not an image: int; give a path, bytes or pixels"):
        captioner.caption(7)


def test_settings_of_the_model_are_its_own(captioner):
    settings = captioner.settings(beam_size=7)
    assert settings == DecodingConfig(beam_size=7)
    assert captioner.decoding.beam_size == 3


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def test_missing_and_damaged_files_are_named(folder, tmp_path):
    with pytest.raises(ModelError, match="no model here"):
        Captioner.load(tmp_path / "nowhere")
    for name in ("model.safetensors", "vocab.json", "preprocessor_config.json", "config.json"):
        whole = (folder / name).read_bytes()
        for data in (b"", whole[: len(whole) // 2], b"\xff" * 100):
            (folder / name).write_bytes(data)
            with pytest.raises(ModelError, match=name.replace(".", r"\.")):
                Captioner.load(folder)
        (folder / name).write_bytes(whole)
    assert Captioner.load(folder)


def test_files_that_do_not_fit_each_other_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    for changed, message in (
        ({"vocab_size": 99}, "99 words"),
        ({"feature_size": 99}, "99 features"),
        ({"hidden_size": 9}, "does not fit config.json"),
        ({"cell": "transformer"}, "decoder"),
        ({"surprise": 1}, "surprise"),
    ):
        edit_json(folder / "config.json", decoder=config["decoder"] | changed)
        with pytest.raises(ModelError, match=message):
            Captioner.load(folder)
    edit_json(folder / "config.json", decoder=config["decoder"], format_version=99)
    with pytest.raises(ModelError, match="format version 99"):
        Captioner.load(folder)


def test_a_missing_weight_is_an_error(folder):
    tensors = load_file(folder / "model.safetensors")
    for lost in ("decoder.output.bias", "encoder.features.0.weight"):
        kept = {name: tensor for name, tensor in tensors.items() if name != lost}
        save_file(kept, folder / "model.safetensors")
        with pytest.raises(ModelError, match=lost.partition(".")[2].replace(".", r"\.")):
            Captioner.load(folder)


def test_a_device_that_is_not_there_is_named(captioner):
    with pytest.raises(ConfigError, match=r"^device quantum: not available here"):
        captioner.to("quantum")
    assert math.isfinite(captioner.to("cpu").encode([Image.new("RGB", (40, 40))]).sum())


CLOSED = io.BytesIO(b"picture")
CLOSED.close()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.full((8, 8, 3), 300), "int64 pixels must be numbers from 0 to 255"),
        (np.full((8, 8, 3), 2.0), "float64 pixels must be numbers from 0 to 1"),
        (torch.full((3, 8, 8), math.nan), "float32 pixels must be numbers from 0 to 1"),
        (torch.zeros(2, 3, 8, 8), r"must be \(H, W\), .* not 2 x 3 x 8 x 8"),
        (np.zeros((8, 8, 2)), "not 8 x 8 x 2"),
        (np.array(0.5), "not a single number"),
        (np.zeros((0, 8, 3)), "8 x 0 pixels: the image is empty"),
        (io.TextIOWrapper(io.BytesIO(b"\xff\xd8\xff")), "the file is opened as text; open it with"),
        (CLOSED, "cannot be read: I/O operation on closed file"),
        (None, "not an image: NoneType; give a path, bytes or pixels"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(image, reason):
    with pytest.raises(ImageError, match=reason):
        list(toys.captioner().caption([image]))


def test_pixels_of_any_kind_are_the_same_picture():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 3)).astype(np.uint8)
    picture = Image.fromarray(pixels)
    real = torch.from_numpy(pixels / 255)
    opaque = np.concatenate([pixels, np.full((2, 5, 1), 255, np.uint8)], axis=2)
    for same in (pixels, real, real.permute(2, 0, 1), real.float().half().float(), opaque):
        assert to_picture(same).tobytes() == picture.tobytes()
    assert to_picture(torch.ones(1, 1, dtype=torch.bfloat16)).getpixel((0, 0)) == (255,) * 3
    assert to_picture(pixels[:, :, :1]).tobytes() == to_picture(pixels[:, :, 0]).tobytes()
    file = io.BytesIO()
    picture.save(file, "PNG")
    for kind in (bytes, bytearray, memoryview):
        assert to_picture(kind(file.getvalue())).tobytes() == picture.tobytes()
        assert isinstance(toys.captioner().caption(kind(file.getvalue())), str)


def test_the_beam_grows_to_the_captions_asked_for(captioner):
    assert captioner.settings(n_best=7).beam_size == 7
    assert captioner.settings(n_best=2).beam_size == captioner.decoding.beam_size
    assert captioner.settings(n_best=7, search="sample").beam_size == captioner.decoding.beam_size
    features = torch.randn(2, captioner.encoder.feature_size)
    assert [len(found) for found in captioner.search(features, n_best=7)] == [7, 7]


def test_of_many_a_broken_image_costs_itself(captioner):
    good = PICTURES[0]
    images = [good, b"no image", good, np.zeros((0, 1))]
    found = captioner.caption(images, on_error="skip")
    caption = captioner.caption(good)
    assert list(found) == [caption, None, caption, None]
    found = captioner.caption(images)
    assert next(found) == caption  # those before it are not lost
    with pytest.raises(ImageError, match="not an image"):
        next(found)


def test_pixels_may_be_overwritten_while_captions_are_made(captioner):
    def frames():
        frame, tensor = np.zeros((20, 20, 3), np.uint8), torch.zeros(3, 20, 20)
        for picture in PICTURES[:6]:
            frame[:] = np.asarray(picture)[:20, :20]
            yield frame
            tensor.copy_(torch.from_numpy(frame).permute(2, 0, 1) / 255)
            yield tensor

    expected = [captioner.caption(picture) for picture in PICTURES[:6] for _ in range(2)]
    assert list(captioner.caption(frames())) == expected


def test_whatever_changes_after_its_turn_was_read_in_its_turn(captioner, tmp_path):
    paths = []
    for number, picture in enumerate(PICTURES[:6]):
        paths.append(tmp_path / f"{number}.png")
        picture.save(paths[-1])
    expected = list(captioner.caption(paths))
    assert len(set(expected)) > 1

    def closed():
        for path in paths:
            with path.open("rb") as file:
                yield file

    def lazy():
        for path in paths:
            with Image.open(path) as picture:
                yield picture

    def refilled():
        memory, canvas = bytearray(), Image.new("RGB", PICTURES[0].size)
        for path, picture in zip(paths, PICTURES, strict=False):
            if path in paths[::2]:
                memory[:] = path.read_bytes()
                yield memory
            else:
                canvas.paste(picture)
                yield canvas

    for images in (closed, lazy, refilled):
        assert list(captioner.caption(images(), on_error="skip")) == expected
    with tempfile.NamedTemporaryFile() as file:
        file.write(paths[0].read_bytes())
        file.seek(0)
        assert captioner.caption(file) == expected[0]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_what_an_iterator_raises_comes_after_the_captions_of_those_before(captioner, size):
    def images():
        yield from PICTURES[:5]
        raise RuntimeError("no more")

    found = captioner.caption(images(), batch_size=size)
    assert [next(found) for _ in range(5)] == list(captioner.caption(PICTURES[:5]))
    with pytest.raises(RuntimeError, match="no more"):
        next(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "on_error: must be 'raise' or 'skip', given 'ignore'"),
        ({"batch_size": "4"}, "batch_size: must be 1 to 65,536, given '4'"),
        ({"beam_size": 0}, r"decoding\.beam_size"),
        ({"bem_size": 3}, r"decoding\.bem_size"),
    ],
)
def test_settings_are_refused_before_anything_is_read(captioner, options, message):
    with pytest.raises(ConfigError, match=message):
        captioner.caption(iter([]), **options)


@pytest.mark.parametrize("features", [torch.zeros(3), torch.zeros(2, 5), ["a.jpg"], None])
def test_what_is_no_table_of_features_is_refused(captioner, features):
    with pytest.raises(ConfigError, match=r"features: must be a tensor \(B, 512\)"):
        captioner.search(features)


@pytest.mark.parametrize("search", ["beam", "sample"])
def test_an_override_without_effect_is_refused(captioner, search, monkeypatch):
    values = {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "beam_size": 2, "length_penalty": 1.0}
    values |= {
        "no_repeat_ngram_size": 2,
        "repeat_penalty": 1.0,
        "neighbours": 0.0,
        "max_length": 5,
        "seed": 1,
    }
    values |= {"min_length": 2, "start": "a red", "forbid": ("blue",)}
    assert values.keys() | {"search", "precision"} == DecodingConfig.model_fields.keys()
    drawing = {"temperature", "top_k", "top_p"}
    both = {"max_length", "min_length", "start", "forbid", "seed"}
    idle = drawing if search == "beam" else {*values} - drawing - both
    assert DecodingConfig.idle[search] == idle
    trained = DecodingConfig(search=search)  # as a model may be trained to
    monkeypatch.setattr(captioner, "decoding", trained)
    for name, value in values.items():
        if name in idle:
            other = "sample" if search == "beam" else "beam"
            with pytest.raises(ConfigError, match=rf"decoding\.{name}: needs .*--search {other}\)"):
                captioner.settings(**{name: value})
            assert captioner.settings(search=other, **{name: value}).search == other
        else:
            assert getattr(captioner.settings(**{name: value}), name) == value


def test_overrides_are_the_settings_of_the_search():
    hints = get_type_hints(DecodingOverrides)
    assert hints.keys() == DecodingConfig.model_fields.keys()
    for name, field in DecodingConfig.model_fields.items():
        assert hints[name] == field.annotation


def test_several_captions_are_not_asked_of_caption(captioner):
    with pytest.raises(ConfigError, match="n_best: `caption` returns the best caption only"):
        captioner.caption(PICTURES[0], n_best=3)


def test_an_opened_picture_is_read_like_its_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    path = tmp_path / "side.png"
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as opened:
        assert to_picture(opened).size == (20, 30)
        assert to_picture(opened).tobytes() == to_picture(path).tobytes()
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:-300])
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(ImageError, match="damaged"):
        to_picture(opened)
    with pytest.raises(ImageError, match="the image is empty"):
        to_picture(Image.new("RGB", (0, 5)))
    assert to_picture(np.array([[True, False]])).tobytes() == bytes([255] * 3 + [0] * 3)


def test_images_are_not_lost_by_an_impossible_batch(captioner):
    for size in (0, -1):
        with pytest.raises(ConfigError, match=f"batch_size: must be 1 to 65,536, given {size}"):
            captioner.caption([Image.new("RGB", (9, 9))], batch_size=size)


@pytest.mark.parametrize(("captions", "shown"), [(7, "7"), (None, "None"), (["a", None], "None")])
def test_captions_that_are_no_text_are_refused(captioner, captions, shown):
    with pytest.raises(ConfigError, match=f"captions: must be text, given {shown}$"):
        captioner.score(Image.new("RGB", (9, 9)), captions)


@pytest.mark.parametrize("nothing", [[], None, ()])
def test_no_model_directory_is_an_error(nothing):
    with pytest.raises(ModelError, match="no model directory given"):
        Captioner.load(nothing)


def tell(box, captioner):
    box.put(list(captioner.caption(PICTURES)))


# A forked child hung for ever: it waited for threads that only its parent had.
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.slow
def test_a_captioner_that_was_used_goes_on_in_another_process(captioner, start):
    expected = list(captioner.caption(PICTURES))
    context = multiprocessing.get_context(start)
    box = context.Queue()
    child = context.Process(target=tell, args=(box, captioner))
    child.start()
    try:
        assert box.get(timeout=600) == expected
    finally:
        child.kill()
        child.join()


def test_a_captioner_survives_pickling():
    captioner, images = toys.captioner(), PICTURES[:3]
    captioner.encoder.mirrored = True
    captioner.caption(images[0])
    copy = pickle.loads(pickle.dumps(captioner))
    assert torch.equal(copy.encode(images), captioner.encode(images))
    assert copy.encoder.mirrored


def test_a_mirrored_captioner_sees_a_picture_and_its_mirror_image_alike():
    captioner, draws = toys.captioner(), np.random.default_rng(0)
    noise = draws.integers(0, 256, (2, toys.SIZE, toys.SIZE, 3), dtype=np.uint8)
    images = [Image.fromarray(each) for each in noise]
    mirrored = [ImageOps.mirror(image) for image in images]
    plain = captioner.encode(images)
    mean = (plain + captioner.encode(mirrored)) / 2
    assert (mean - plain).abs().max() > 0.01  # these pictures are not symmetric
    captioner.encoder.mirrored = True
    torch.testing.assert_close(captioner.encode(images), mean)
    torch.testing.assert_close(captioner.encode(mirrored), mean)
    upside_down = [ImageOps.flip(image) for image in images]
    assert (captioner.encode(upside_down) - mean).abs().max() > 0.01
