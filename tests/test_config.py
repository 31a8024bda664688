"""Settings: every mistake at once, overrides, and YAML that reads back as it was."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from captioner.cli.train import command as train_command
from captioner.config import (
    CnnConfig,
    Config,
    DecodingConfig,
    bundled,
    find_config,
    load_config,
    resolve_path,
)
from captioner.errors import ConfigError
from captioner.system.foreign import plain

BUNDLED = sorted(bundled("configs").glob("*.yaml"))
# PyYAML itself reads the rare line ends of Unicode back as spaces.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"))
BAD_FILE = """
trainning: {epochs: 3}
training: {lerning_rate: 0.1, epochs: 0, batch_size: many}
decoder: {cell: gru, nonlinearity: relu}
data: {split_train: all, split_dev: all}
"""


def mistakes(name: str | None, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(name, overrides)
    return str(error.value).splitlines()


def write(folder: Path, text: str) -> str:
    path = folder / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_no_file_and_no_overrides_are_the_defaults() -> None:
    assert load_config(None) == Config()


def test_all_mistakes_are_reported_at_once_with_key_reason_and_value(tmp_path: Path) -> None:
    path = write(tmp_path, BAD_FILE)
    head, *lines = mistakes(path, "encoder.flip=maybe", "decoding.top_p=1.5", "training=3")
    expected = (
        ("--set training=3", "must look like section.key=value", ""),
        ("trainning", "no such setting (did you mean training?)", "{'epochs': 3}"),
        ("training.lerning_rate", "no such setting (did you mean learning_rate?)", "0.1"),
        ("training.epochs", "greater than or equal to 1", "0"),
        ("training.batch_size", "valid integer", "'many'"),
        ("decoder.nonlinearity", "only rnn and elman have one", "'relu' with cell 'gru'"),
        ("data.split_dev", "must differ from data.split_train", "'all'"),
        ("encoder.flip", "valid boolean", "'maybe'"),
        ("decoding.top_p", "less than or equal to 1", "1.5"),
    )
    assert head == f"{path} with --set: {len(expected)} mistake(s)"
    assert len(lines) == len(expected)
    for key, reason, value in expected:
        [line] = [line for line in lines if line.startswith(f"{key}: ")]
        assert reason in line
        assert line.endswith(value)


def test_an_unknown_key_like_no_other_lists_what_there_is() -> None:
    [_, line] = mistakes(None, "text.zzz=1")
    known = "tokenizer, min_count, vocab_size, max_length"
    assert line == f"text.zzz: no such setting (known: {known}), given 1"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs", "must look like section.key=value"),
        ("epochs=3", "must look like section.key=value"),
        (".epochs=3", "must look like section.key=value"),
        ("training.=3", "must look like section.key=value"),
        ("5.epochs=3", "5: no such setting (known: data, text, "),
        ("training.epochs=[", "not valid YAML"),
        ("training.seed=2020-99-99", "not valid YAML"),
        ("training.epochs=yes", "should not be true or false, given True"),
        ("training.learning_rate=on", "should not be true or false, given True"),
        ("training.learning_rate=.inf", "finite"),
        ("training.learning_rate=0", "greater than or equal to 0.0"),
        ("training.epochs=2.5", "valid integer"),
        ("encoder.weights=null", "valid string"),
        ("encoder.image_size=31", "greater than or equal to 32"),
        ("decoder.cell=lstn", "'lstm'"),
        ("decoder.dropout=1", "less than 1"),
    ],
)
def test_one_wrong_override_is_one_line(override: str, words: str) -> None:
    [_, line] = mistakes(None, override)
    assert words in line
    assert override.partition("=")[0].rpartition(".")[2] in line


def test_an_override_below_a_plain_value_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "training: {epochs: 5}")
    [_, line] = mistakes(path, "training.epochs.deep=2")
    assert line == "--set training.epochs.deep=2: epochs is not a section"


def test_overrides_win_over_the_file_which_wins_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "training: {epochs: 5, seed: 1}\ndecoder:\n")
    config = load_config(path, ["training.seed=2", "training.seed=3", "decoder.cell=gru"])
    assert (config.training.epochs, config.training.seed) == (5, 3)
    assert config.decoder.cell == "gru"
    assert config.training.batch_size == Config().training.batch_size


def test_a_section_left_empty_has_its_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "training:\n")) == Config()
    assert load_config(write(tmp_path, "")) == Config()


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "1E-3", ".001"])
def test_small_numbers_in_every_spelling(text: str, tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-3 as text.
    assert load_config(None, [f"training.learning_rate={text}"]).training.learning_rate == 1e-3
    path = write(tmp_path, f"training: {{learning_rate: {text}}}")
    assert load_config(path).training.learning_rate == 1e-3


def test_builder_args_hold_anything() -> None:
    override = "encoder.builder_args={width_mult: 0.5, inverted_residual_setting: [[1, 16, 1, 1]]}"
    config = load_config(None, [override, "encoder.builder_args.dropout=0"])
    assert config.encoder.cnns[0].builder_args == {
        "width_mult": 0.5,
        "inverted_residual_setting": [[1, 16, 1, 1]],
        "dropout": 0,
    }


CNNS = """
encoder:
  cnns:
    - {backbone: resnet18, weights: a.pth}
    - {backbone: squeezenet1_1, weights: b.pth, builder_args: {dropout: 0.1}}
    - {backbone: resnet18}
  image_size: 96
"""
OF_0_1 = """
encoder:
  - {backbone: resnet18, weights: a.pth, image_size: 96}
  - {backbone: squeezenet1_1, weights: b.pth, builder_args: {dropout: 0.1}}
  - {backbone: resnet18}
"""


def test_cnns_are_a_list_in_every_spelling(tmp_path: Path) -> None:
    path = write(tmp_path, CNNS)
    config = load_config(path)
    names = [cnn.backbone for cnn in config.encoder.cnns]
    assert names == ["resnet18", "squeezenet1_1", "resnet18"]
    assert config.encoder.image_size == 96
    assert load_config(write(tmp_path, OF_0_1)) == config
    others = "{backbone: squeezenet1_1, weights: b.pth, builder_args: {dropout: 0.1}}, "
    others += "{backbone: resnet18, weights: DEFAULT}"
    first = ["encoder.backbone=resnet18", "encoder.weights=a.pth", "encoder.image_size=96"]
    whole = f"encoder.cnns=[{{backbone: resnet18, weights: a.pth}}, {others}]"
    assert load_config(None, [whole, "encoder.image_size=96"]) == config
    beside = "encoder: {backbone: resnet18, weights: a.pth, image_size: 96, beside: [" + others
    assert load_config(write(tmp_path, beside + "]}")) == config
    assert load_config(write(tmp_path, config.to_yaml())) == config
    assert load_config(None, first).encoder.cnns == config.encoder.cnns[:1]
    [one, *rest] = [{"backbone": "resnet18", "weights": "a.pth"}, {}]
    assert Config.model_validate({"encoder": [one, *rest]}).encoder.cnns[1:] == [CnnConfig()]
    assert Config.model_validate({"encoder": [one]}) == Config.model_validate({"encoder": one})


@pytest.mark.parametrize("text", [CNNS, OF_0_1])
def test_overrides_reach_each_of_several_cnns(tmp_path: Path, text: str) -> None:
    config, path = load_config(write(tmp_path, text)), write(tmp_path, text)
    smaller = load_config(path, ["encoder.image_size=64"])
    assert smaller.encoder == config.encoder.model_copy(update={"image_size": 64})
    changed = ["encoder.weights=c.pth", "encoder.cnns.1.builder_args.dropout=0.2"]
    first, second, third = load_config(path, changed).encoder.cnns
    assert first == CnnConfig(backbone="resnet18", weights="c.pth")
    assert second.builder_args == {"dropout": 0.2}
    assert third == config.encoder.cnns[2]
    for index in ("3", "first"):
        [_, line] = mistakes(path, f"encoder.cnns.{index}.weights=c.pth")
        assert line == f"--set encoder.cnns.{index}.weights=c.pth: cnns is not a section"


TWO = """
encoder:
  cnns:
    - {backbone: resnet18, weights: a.pth, builder_args: {dropout: 0.1}}
    - {backbone: squeezenet1_1, weights: none, builder_args: {dropout: 0.1}}
"""


@pytest.mark.parametrize(
    ("overrides", "first", "second", "said"),
    [
        (["backbone=resnet34"], ("resnet34", "DEFAULT", {}), None, "weights and builder_args"),
        (["backbone=resnet18"], None, None, ""),
        (["backbone=resnet34", "weights=b.pth"], ("resnet34", "b.pth", {}), None, "weights and"),
        (["weights=b.pth", "backbone=resnet34"], ("resnet34", "b.pth", {}), None, "weights and"),
        (
            ["builder_args.dropout=0.2", "cnns.0.backbone=resnet34"],
            ("resnet34", "DEFAULT", {"dropout": 0.2}),
            None,
            "weights and builder_args",
        ),
        (["cnns.1.backbone=resnet34"], None, ("resnet34", "none", {}), "builder_args"),
    ],
)
def test_another_backbone_drops_what_belongs_to_the_first(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    first: tuple[Any, ...] | None,
    second: tuple[Any, ...] | None,
    said: str,
) -> None:
    config = load_config(write(tmp_path, TWO), [f"encoder.{override}" for override in overrides])
    found = [(cnn.backbone, cnn.weights, cnn.builder_args) for cnn in config.encoder.cnns]
    assert found[0] == (first or ("resnet18", "a.pth", {"dropout": 0.1}))
    assert found[1] == (second or ("squeezenet1_1", "none", {"dropout": 0.1}))
    note = capsys.readouterr().err
    assert note.count("note: encoder.") == bool(said)
    assert said in note


@pytest.mark.parametrize(
    ("encoder", "lines"),
    [
        (
            "{cnns: [{}, {image_size: 64, flip: true, weihgts: x}, {beside: []}]}",
            [
                "encoder.cnns.1.image_size: no such setting of one CNN: set encoder.image_size, "
                "for all CNNs, given 64",
                "encoder.cnns.1.flip: no such setting of one CNN: set encoder.flip, for all CNNs, "
                "given True",
                "encoder.cnns.1.weihgts: no such setting (did you mean weights?), given 'x'",
                "encoder.cnns.2.beside: no such setting (known: backbone, weights, "
                "builder_args), given []",
            ],
        ),
        ("[]", ["encoder: must hold keys and values"]),
        ("[resnet18, resnet34]", ["encoder: must hold keys and values"]),
        ("{cnns: []}", ["encoder.cnns: list should have at least 1 item"]),
        ("[{}, resnet18]", ["encoder.cnns.1: must hold keys and values"]),
        ("{cnns: yes}", ["encoder.cnns: should not be true or false, given True"]),
        ("{cnns: {backbone: resnet18}}", ["encoder.cnns: input should be a valid list"]),
        (
            "{backbone: resnet18, builder_args: 5, beside: [{wieghts: x}, 3]}",
            [
                "encoder.builder_args: input should be a valid dictionary",
                "encoder.beside.0.wieghts: no such setting (did you mean weights?)",
                "encoder.beside.1: must hold keys and values",
            ],
        ),
        ("{beside: yes}", ["encoder.beside: no such setting (known: cnns, "]),
        ("{cnns: [{}], weights: x}", ["encoder.weights: no such setting (known: cnns, "]),
    ],
)
def test_what_is_no_list_of_cnns(tmp_path: Path, encoder: str, lines: list[str]) -> None:
    [_, *found] = mistakes(write(tmp_path, f"encoder: {encoder}"))
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))


def test_nonlinearity_goes_with_plain_cells_only() -> None:
    for cell in ("rnn", "elman"):
        config = load_config(None, [f"decoder.cell={cell}", "decoder.nonlinearity=relu"])
        assert config.decoder.nonlinearity == "relu"


@pytest.mark.parametrize(
    ("override", "needs"),
    [
        ("training.samples=7", "training.objective scst"),
        ("training.bleu_weight=0.5", "training.objective scst"),
    ],
)
def test_a_setting_without_effect_is_refused(override: str, needs: str) -> None:
    with pytest.raises(ConfigError, match=f"applies only to {needs}"):
        load_config(None, [override])


def test_values_never_change() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.training.epochs = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.training = config.training


def test_every_setting_says_what_it_means() -> None:
    for name, field in Config.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        for key, setting in section.model_fields.items():
            assert setting.description, f"{name}.{key}"


@settings(max_examples=50)
@given(
    root=TEXT,
    args=st.dictionaries(
        TEXT, st.none() | st.integers() | st.floats(allow_nan=False) | TEXT, max_size=3
    ),
    rate=st.floats(1e-8, 10),
    window=st.none() | st.integers(1, 99),
    cell=st.sampled_from(["rnn", "gru", "lstm", "elman"]),
)
def test_yaml_reads_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, root: str, args: dict[str, Any], **drawn: Any
) -> None:
    config = Config.model_validate(
        {
            "data": {"root": root},
            "encoder": {"builder_args": args},
            "training": {"learning_rate": drawn["rate"], "bptt_window": drawn["window"]},
            "decoder": {"cell": drawn["cell"]},
        }
    )
    path = write(tmp_path_factory.getbasetemp(), config.to_yaml())
    assert load_config(path) == config


@settings(max_examples=100)
@given(st.text() | st.text(st.sampled_from("data:{}[]&*!|>-?'\"\n #1.,=~"), max_size=12))
def test_no_text_raises_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = write(tmp_path_factory.getbasetemp(), text)
    try:
        load_config(path, [text, f"data.root={text}"])
    except ConfigError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"- 1\n", "must hold sections such as `training:`"),
        (b"a: [", "not valid YAML"),
        (b"a: 2020-13-45", "not valid YAML"),
        (b"\xff\xfe\xff", "cannot be read"),
        (b"[" * 10_000, "not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_bytes(content)
    [line] = mistakes(str(path))
    assert line.startswith(f"{path}: {words}")


@pytest.mark.parametrize("name", ["nowhere.yaml", "~nobody_here/x.yaml", "x" * 5000, "", "a\0b"])
def test_a_missing_file_lists_the_bundled_ones(name: str) -> None:
    [line] = mistakes(name)
    assert line.startswith(f"{plain(name)}: no such config file")
    assert BUNDLED
    assert all(path.stem in line for path in BUNDLED)


@pytest.mark.parametrize("text", [CNNS, "encoder: {backbone: resnet18}"])
def test_a_mistake_names_the_setting_that_was_typed(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    [_, line] = mistakes(path, "encoder.builder_args=5")
    assert line.startswith("encoder.builder_args: ")
    [_, line] = mistakes(path, "encoder.beside=[{backbone: resnet18}]")
    assert line.endswith("the CNNs are a list since captioner 0.2: set encoder.cnns.1 and so on")


def test_data_given_as_a_config_are_told_where_they_belong(tmp_path: Path) -> None:
    hint = "name data with --set data.root=PATH"
    table, large = tmp_path / "captions.csv", tmp_path / "coco.json"
    table.write_text("image,caption\na.jpg,a dog\n")
    large.write_text('{"images": [' + "1," * 2**19 + "1]}")
    for place in (tmp_path, table, large):
        [line] = mistakes(str(place))
        assert line.endswith(hint)
    (tmp_path / "config.yaml").touch()
    [line] = mistakes(str(tmp_path))
    assert line.endswith(f"its config is {tmp_path}/config.yaml")


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_bundled_configs_load_and_begin_with_the_command_that_runs_them(path: Path) -> None:
    for name in (path.stem, path.name, f"configs/{path.name}", str(path)):
        assert find_config(name).samefile(path)
    assert load_config(path.stem) != Config()
    comment, program, verb, *rest = shlex.split(path.read_text().splitlines()[0])
    assert (comment, program, verb) == ("#", "captioner", "train")
    given = train_command.make_context("train", rest).params
    assert given["config"] in (path.stem, None if path.stem == "scenes" else path.stem)
    load_config(path.stem, given["overrides"])


def test_bundled_paths_lie_in_the_package_and_tilde_at_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert resolve_path("bundled:configs") == bundled("configs")
    assert bundled("configs").is_dir()
    assert resolve_path("~/pictures") == Path("/home/somebody/pictures")
    assert resolve_path("~nobody_here/x") == Path("~nobody_here/x")
    assert resolve_path("pictures") == Path("pictures")


def test_decoding_names_itself_as_a_signature_does() -> None:
    for overrides, summary in (
        ([], "beam3,lp0.7"),
        (["beam_size=5", "length_penalty=0", "no_repeat_ngram_size=2"], "beam5,lp0.0,no_repeat2"),
        (["repeat_penalty=1", "neighbours=6"], "beam3,lp0.7,repeat1.0,neighbours6.0"),
        (["search=sample", "top_k=9", "seed=4"], "sample,t1.0,k9,p1.0,seed4"),
        (["min_length=1", "start=", "forbid=[]"], "beam3,lp0.7"),
        (["min_length=0"], "beam3,lp0.7,min0"),
        (
            ["min_length=4", "start=A  photo of", "forbid=[Women, men, men]"],
            "beam3,lp0.7,min4,start=a photo of,forbid=men women",
        ),
        (["search=sample", "forbid=dog"], "sample,t1.0,k0,p1.0,seed0,forbid=dog"),
        (["start=a | b"], "beam3,lp0.7,start=3 words 885c6fca"),
        (
            ["forbid=[" + ", ".join(map("w{}".format, range(40))) + "]"],
            "beam3,lp0.7,forbid=40 words ab8ccc72",
        ),
    ):
        config = load_config(None, [f"decoding.{override}" for override in overrides])
        assert config.decoding.summary() == summary


def test_the_sample_of_older_versions_is_read_as_a_search() -> None:
    for old, search in ((True, "sample"), (False, "beam")):
        assert DecodingConfig.model_validate({"sample": old}) == DecodingConfig(search=search)
        config = load_config(None, [f"decoding.sample={str(old).lower()}"])
        assert config.decoding.search == search
    for wrong in ("decoding.sample=3", "decoding.sample=[]"):
        with pytest.raises(ConfigError, match=r"decoding\.sample: use `decoding\.search: sample`"):
            load_config(None, [wrong])
    with pytest.raises(ConfigError, match=r"decoding\.sample: use"):
        load_config(None, ["decoding.sample=true", "decoding.search=beam"])


@pytest.mark.parametrize(
    ("setting", "off", "on"),
    [
        ("decoding.consensus", 0.0, 0.15),
        ("decoding.draws", 1, 4),
        ("training.teachers", [], ["a"]),
        ("training.compile", False, True),
        ("decoder.init_activation", "tanh", "none"),
    ],
)
def test_a_removed_setting_loads_if_it_is_off_and_is_an_error_if_it_is_on(setting, off, on):
    section, name = setting.split(".")
    assert Config.model_validate({section: {name: off}}) == Config()
    with pytest.raises(ConfigError, match=f"{setting}: removed in captioner 0.2") as error:
        load_config(None, [f"{setting}={on}"])
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    "text", ["2017", "2017-01-01", "2020-99-99", "1e3", "yes", "@photos", "a: b: c", "~x"]
)
@pytest.mark.parametrize("key", ["data.root", "data.images"])
def test_a_text_on_the_command_line_stays_a_text(key: str, text: str) -> None:
    config = load_config(None, [f"{key}={text}"])
    assert getattr(config.data, key.removeprefix("data.")) == text
    assert load_config(None, ["data.images=null"]).data.images is None
