from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.config.settings import TrainConfig, make_config
from mnist_ray.config.yaml_files import parse_override, parse_setting, parse_value, read_yaml, yaml_text
from mnist_ray.errors import ConfigError
from mnist_ray.grids.grid import read_grid


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def yaml_message(folder: Path, text: str | bytes) -> str:
    path = written(folder, text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)
    prefix = f"--config {str(path)!r}: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


def test_a_yaml_file_is_a_mapping_of_settings(tmp_path: Path) -> None:
    text = "learning_rate: 1e-3\nepochs: 7\nhidden_sizes: [256, 128]\nbatch_norm: true\ntrain_limit:\n"
    config = make_config(TrainConfig, read_yaml(written(tmp_path, text)))
    assert (config.learning_rate, config.epochs, config.hidden_sizes) == (0.001, 7, (256, 128))
    assert (config.batch_norm, config.train_limit) == (True, None)


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n"])
def test_an_empty_yaml_file_changes_no_setting(tmp_path: Path, text: str) -> None:
    assert read_yaml(written(tmp_path, text)) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs: 1\nseed: 2\nepochs: 3\n", "line 3: the key 'epochs' occurs twice"),
        ("a: {b: 1, b: 2}\n", "line 1: the key 'b' occurs twice"),
        ("a: &x 1\nb: *x\n", "line 2: aliases (*name) are not supported"),
        ("- epochs\n", "needs one mapping of setting names to values"),
        ("just text\n", "needs one mapping of setting names to values"),
        ("1: 2\n1: 3\n", "line 2: the key 1 occurs twice"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "line 4: the key 'b' occurs twice"),
        ("a: 1\n---\nb: 2\n", "not YAML: expected a single document in the stream"),
        ("1: 2\n", "needs one mapping of setting names to values"),
        ("epochs: 2026-13-45\n", "not YAML: month must be in 1..12"),
        (b"\xff\xfe\xff", "not YAML: "),
        ("a: [1\n", "not YAML: while parsing a flow sequence"),
        ("a: !!python/object/apply:os.system [true]\n", "not YAML: could not determine a constructor for the tag"),
        ("[" * 100_000, "not YAML: maximum recursion depth exceeded"),
    ],
)
def test_a_yaml_file_that_is_no_config_is_refused_in_one_line(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert yaml_message(tmp_path, text).startswith(expected)


def test_aliases_of_aliases_are_refused_before_they_unfold(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert yaml_message(tmp_path, "\n".join(lines)) == "line 2: aliases (*name) are not supported"


def test_merge_keys_are_refused_before_they_unfold(tmp_path: Path) -> None:
    lines = ["a0: &a0 {k: 1}"] + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 30)]
    assert yaml_message(tmp_path, "\n".join(lines)) == "line 2: aliases (*name) are not supported"


def test_a_file_over_a_mebibyte_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a sparse file of a tebibyte
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"--config {str(path)!r}: larger than 1048576 bytes, too large for a config"


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "absent.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError) as caught:
            read_yaml(path)
        assert str(caught.value) == f"--config {str(path)!r}: {reason}"


@given(st.text() | st.text(alphabet="{}[]:,&*!<>|-?'\"# \nab01.~e", max_size=60))
def test_any_text_is_a_mapping_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        content, refusal = read_yaml(path), ""
    except ConfigError as error:
        content, refusal = {}, str(error)
    assert all(isinstance(key, str) for key in content)
    assert len(refusal.splitlines()) <= 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate=1e-3", ("learning_rate", 0.001)),
        ("learning_rate=3E-4", ("learning_rate", 0.0003)),
        ("epochs=7", ("epochs", 7)),
        ("epochs=010", ("epochs", 10)),
        ("epochs=1_000", ("epochs", 1000)),
        ("epochs=0x10", ("epochs", 16)),
        ("epochs=1:30", ("epochs", "1:30")),
        ("learning_rate=1:30.5", ("learning_rate", "1:30.5")),
        ("hidden_sizes=[010, 020]", ("hidden_sizes", [10, 20])),
        ("batch_norm=true", ("batch_norm", True)),
        ("train_limit=null", ("train_limit", None)),
        ("hidden_sizes=[256, 128]", ("hidden_sizes", [256, 128])),
        ("hidden_sizes=256,128", ("hidden_sizes", "256,128")),
        ("dataset=folder:s3://bucket/a=b", ("dataset", "folder:s3://bucket/a=b")),
        (" epochs =7", ("epochs", 7)),
        ("dataset=idx:/a/{b", ("dataset", "idx:/a/{b")),
        ("epochs=", ("epochs", None)),
        ("epochs=2026-13-45", ("epochs", "2026-13-45")),
        ("epochs=0o10", ("epochs", 8)),
        ("batch_norm=yes", ("batch_norm", "yes")),
        ("variant=no", ("variant", "no")),
        ("learning_rate=.5", ("learning_rate", 0.5)),
        ("learning_rate=-1E+2", ("learning_rate", -100.0)),
        ("image_size=0x40", ("image_size", "0x40")),
        ("image_size=32", ("image_size", "32")),
        ("image_size=[16, 40x60]", ("image_size", [16, "40x60"])),
        ("image_size=null", ("image_size", None)),
    ],
)
def test_an_override_is_a_key_and_a_yaml_value(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("dropout", "0.1,0.2", [0.1, 0.2]),
        ("dropout", "0.1, 1e-3,", [0.1, 1e-3]),
        ("dropout", "0.1,x", [0.1, "x"]),
        ("epochs", "1,2", [1, 2]),
        ("batch_norm", "true,false", [True, False]),
        ("gradient_clip_norm", "1,null", [1, None]),
        ("hidden_sizes", "256,128", "256,128"),
        ("hidden_sizes", "[[256,128],[64]]", [[256, 128], [64]]),
        ("dropout", "{uniform: [0, 0.5]}", {"uniform": [0, 0.5]}),
        ("optimizer", "adam,sgd", ["adam", "sgd"]),
        ("optimizer", "[adam, sgd]", ["adam", "sgd"]),
        ("color", "grey,null", ["grey", None]),
        ("image_size", "0x40", "0x40"),
        ("image_size", "28,16x20", ["28", "16x20"]),
        ("dataset", "mnist,digits", ["mnist", "digits"]),
        ("dataset", "folder:/a,b: c #1", "folder:/a,b: c #1"),
        ("dataset", "'a,b'", "a,b"),
        ("dataset", "", ""),
        ("variant", "1", "1"),
        ("model_settings", "{width: 64}", {"width": 64}),
        ("model_settings.names", "a,b", "a,b"),
        ("unknown", "1,2", "1,2"),
    ],
)
def test_commas_separate_the_values_of_a_scalar_setting(name: str, text: str, expected: object) -> None:
    assert parse_setting(name, text) == expected


@pytest.mark.parametrize("text", ["epochs", "", "=3", " =3"])
def test_an_override_without_key_or_equals_sign_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_override(text)
    assert str(caught.value) == f"--set {text!r}: write it as KEY=VALUE"


@given(st.text())
def test_any_text_is_some_value(text: str) -> None:
    parse_value(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_reads_back_as_itself(number: float) -> None:
    assert parse_value(repr(number)) == number


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters="\ufeff\ufffe\uffff")),
    lambda values: st.lists(values, max_size=3),
    max_leaves=5,
)


@hypothesis.settings(max_examples=50)
@given(st.dictionaries(st.text("abcdef_", min_size=1, max_size=8), VALUES, max_size=4))
def test_what_is_written_as_yaml_is_read_back(settings: dict[str, object]) -> None:
    text = yaml_text(settings)
    assert parse_value(text) == settings
    if settings:
        assert list(parse_value(text)) == sorted(settings)


def test_a_value_is_written_in_one_line_each() -> None:
    long = "a" * 300 + " b"
    text = yaml_text({"dataset": long, "variant": "x\n```\ny", "learning_rate": 1e-5, "hidden_sizes": [8, 4]})
    assert text == f'dataset: {long}\nhidden_sizes:\n- 8\n- 4\nlearning_rate: 1e-05\nvariant: "x\\n```\\ny"\n'


@pytest.mark.parametrize("text", ["yes", "no", "on", "1:30", "010", "~", "null", "1e-3", "[a", "*x", "# x", " x"])
def test_text_that_might_mean_something_else_is_written_so_that_it_stays_text(text: str) -> None:
    assert parse_value(yaml_text({"variant": text})) == {"variant": text}


def test_yes_and_no_switch_a_setting_and_are_levels_of_it() -> None:
    config = make_config(TrainConfig, dict([parse_override("batch_norm=yes")]))
    assert config.batch_norm is True
    grid = read_grid({"batch_norm": [parse_value("no"), parse_value("yes")]}, seeds="1", overrides={}, source="grid")
    assert grid.axes["batch_norm"] == (False, True)
