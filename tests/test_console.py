"""What is printed shows names as they are: no markup is read, and no control character reaches a terminal."""

import json

import pytest

from comodal.console import Table, escape_control_characters, print_json, print_line
from comodal.progress import track_progress

HOSTILE = ["[/b]dog", "run[v2]", "[red]x[/red]", ":smile:", "[link=file:///etc/passwd]a[/link]"]
ESCAPES = ["\x1b[2J", "\x1b]0;title\x07", "\x9b2J", "a\rb", "a\nb", "\u202egnp.exe", "caf\udce9", "a\u2028b", "\x7f"]


@pytest.mark.parametrize("name", HOSTILE)
def test_markup_is_shown_as_it_is(name, capsys):
    print_line(f"{name} is written")
    table = Table(name, title=name, caption=name)
    table.add_row(name)
    table.show()
    list(track_progress([1, 2], name))
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"{name} is written"
    assert out.count(name) == 5
    assert name in err


@pytest.mark.parametrize("name", ESCAPES)
def test_control_characters_never_reach_a_terminal(name, capsys):
    print_line(name)
    print_line(name, stderr=True)
    print_json({name: name})
    table = Table(name, title=name, caption=name)
    table.add_row(name)
    table.show()
    list(track_progress([1, 2], name))
    for text in capsys.readouterr():
        assert not [sign for sign in text if sign != "\n" and (ord(sign) < 32 or 127 <= ord(sign) < 160)]
        assert not set(text) & set("\u202e\u2028\udce9")
    assert escape_control_characters(name).isprintable()


@pytest.mark.parametrize("name", [*HOSTILE, *ESCAPES])
def test_json_says_what_it_was_told(name, capsys):
    print_json({name: [name]})
    assert json.loads(capsys.readouterr().out) == {name: [name]}


def test_a_long_sentence_is_one_line(capsys):
    print_line("word " * 100)
    assert capsys.readouterr().out == "word " * 100 + "\n"


def test_a_table_in_a_pipe_is_not_cut(capsys):
    cells = [f"{'long' * 20}{number}" for number in range(12)]
    table = Table(*cells)
    table.add_row(*cells)
    table.show()
    rows = [line for line in capsys.readouterr().out.splitlines() if "long" in line]
    assert [[word for word in row.split() if "long" in word] for row in rows] == [cells, cells]
