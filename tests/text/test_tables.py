"""What is printed fits its width, and loses nothing."""

import pytest
from rich.console import Console

from mnist_ray.text.tables import print_table, print_text

SENTENCE = "Dropout 0.2 and 0.3: nothing seen, and less than 1.8 points either way; 37 seeds would tell 0.5 points."
NAME = "convolutional_network:Small, batch norm, dropout 0.30000001, weight decay 0.0001, label smoothing 0.1, wide"


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_text_is_broken_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    print_text(f"{SENTENCE} {SENTENCE}")
    lines = printed(capsys)
    assert len(lines) == 3
    assert max(map(len, lines)) <= 100
    assert " ".join(lines) == f"{SENTENCE} {SENTENCE}"
    uri = "s3://bucket/" + "long-name-" * 12
    print_text(f"all pairs: {uri}\x1b[2J")
    assert printed(capsys) == ["all pairs:", f"{uri}\\x1b[2J"]


def test_a_wide_table_breaks_its_names_and_keeps_every_number_whole(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["setting", *["mean val accuracy"] * 7]
    number = "0.9790 ± 0.0059"
    print_table(names[:6], [["bn", *[number] * 5]], title=SENTENCE + SENTENCE, width=100)
    lines = printed(capsys)
    assert max(map(len, lines)) <= 100
    assert sum(line.count(number) for line in lines) == 5
    assert [line.split() for line in lines[-6:-3]] == [["mean"] * 5, ["val"] * 5, ["setting", *["accuracy"] * 5]]
    # A title longer than the table is in several lines, too.
    assert " ".join(SENTENCE.split()) in " ".join(" ".join(lines).split())


def test_a_value_is_on_one_line_whatever_its_length(capsys: pytest.CaptureFixture[str]) -> None:
    values = ["dropout 0.3, bn", "a" * 90, "0.9790 ± 0.0059"]
    for length in range(1, 99):
        for optional in ((), ("number",), ("other", "number")):
            print_table(["setting", "other", "number"], [["x" * length, *values[1:]], values], optional=optional)
            lines = printed(capsys)
            assert max(map(len, lines)) <= 100
            text = "\n".join(lines)
            lost = next((line for line in lines if line.startswith("without ")), "")
            for name, cells in (("setting", ["x" * length, values[0]]), ("other", values[1:2]), ("number", values[2:])):
                assert all((value in text) == (f" {name}," not in lost) for value in cells)
                assert name in optional or f" {name}," not in lost


def test_less_important_columns_give_way_to_a_long_name(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["run", "setting", "date", "size", "val accuracy"]
    row = ["r" * 64, "dropout 0.3, wd 0.0001", "2026-11-30 09:12", "1.2 MB", "0.9790"]

    def kept(length: int, *optional: str) -> tuple[list[str], str]:
        print_table(names, [["r" * length, *row[1:]]], title="all: baseline", optional=optional)
        lines = [line for line in printed(capsys) if line.strip()]
        assert max(map(len, lines)) <= 100
        (cells,) = (line for line in lines if line.startswith(" rr"))
        return [name for name, cell in zip(names[1:], row[1:], strict=True) if cell in cells], lines[-1]

    importance = ("setting", "date", "size")
    assert kept(20, *importance)[0] == names[1:]
    assert kept(62, *importance) == (["setting", "val accuracy"], "without date, size, for which there is no room")
    # There is no room for the setting, but for what is less important.
    assert kept(68, *importance) == (["date", "val accuracy"], "without setting, size, for which there is no room")
    assert kept(68, "size", "date", "setting")[0] == ["size", "val accuracy"]
    # All is needed: a list.
    print_table(names, [row])
    assert printed(capsys) == [*(f"{name:14}{cell}" for name, cell in zip(names, row, strict=True)), ""]


def test_a_list_breaks_only_a_value_that_is_longer_than_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for length in (85, 98):
        value = ("word " * 20)[: length - 1] + "!"
        print_table(["a name of ten", "number"], [[value, "x" * 30]])
        lines = printed(capsys)
        assert max(map(len, lines)) <= 100
        assert lines == [*([f"a name of ten  {value}"] if length == 85 else ["a name of ten", f"  {value}"]),
                         f"number         {'x' * 30}", ""]  # fmt: skip
    print_table(["setting", "x"], [[NAME, "x" * 30]])
    first, second, *_ = printed(capsys)
    assert " ".join(f"{first} {second}".split()) == f"setting {NAME}"


def test_columns_of_one_name_are_two_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["run", "run"], [["a", "b"]])
    assert [line.split() for line in printed(capsys)][3] == ["a", "b"]


def test_a_table_of_which_the_numbers_do_not_fit_is_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["setting", *(f"value {place}" for place in range(9))], [[NAME, *["0.9790 ± 0.0059"] * 9]], width=100)
    lines = printed(capsys)
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("setting  convolutional_network:Small, batch norm")
    assert lines[1].startswith("         ")
    assert " ".join(f"{lines[0]} {lines[1]}".split()) == f"setting {NAME}"
    assert lines[2:11] == [f"value {place}  0.9790 ± 0.0059" for place in range(9)]


def test_text_fits_a_narrower_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mnist_ray.text.tables.console", lambda: Console(width=60))
    print_text(f"{SENTENCE} {SENTENCE}")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(lines) == f"{SENTENCE} {SENTENCE}"
