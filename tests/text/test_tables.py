"""What is printed fits its width, and loses nothing."""

import pytest

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


def test_a_long_name_is_folded_and_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    for count in (1, 3, 4, 6, 12):
        print_table(["setting", *"x" * count], [[NAME, *["+0.9790"] * count]], width=100)
        lines = printed(capsys)
        assert max(map(len, lines)) <= 100
        text = "\n".join(lines)
        assert text.count("+0.9790") == count
        # Without the numbers, names of columns and spaces, the name is whole.
        kept = "".join(line.replace("+0.9790", "") for line in lines)
        assert "".join(NAME.split()) in "".join(kept.replace("─", "").split()).replace("xx", "")


def test_a_table_of_which_the_numbers_do_not_fit_is_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["setting", *(f"value {place}" for place in range(9))], [[NAME, *["0.9790 ± 0.0059"] * 9]], width=100)
    lines = printed(capsys)
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("setting  convolutional_network:Small, batch norm")
    assert lines[1].startswith("         ")
    assert " ".join(f"{lines[0]} {lines[1]}".split()) == f"setting {NAME}"
    assert lines[2:11] == [f"value {place}  0.9790 ± 0.0059" for place in range(9)]


def test_only_texts_are_folded_and_a_row_of_too_many_numbers_is_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    number, name = "0.97901 ± 0.00591", "convolutional_network:Small, dropout 0.3"
    # Eight columns are left for the name.
    print_table(["setting", *"x" * 5], [[name, *[number] * 5]], width=100)
    lines = printed(capsys)
    assert max(map(len, lines)) <= 100
    assert sum(line.count(number) for line in lines) == 5
    assert "".join("".join(lines).replace(number, "").split()).endswith("".join(name.split()))
    print_table(["setting", *"x" * 6], [["bn", *[number] * 6]], width=100)
    assert printed(capsys) == ["setting  bn", *[f"x        {number}"] * 6, ""]
