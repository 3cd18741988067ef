"""The terminal output of the training commands."""

from rich.table import Table
from rich.text import Text

from training.commands.console import OUT, print_line

NAME = "ev\x1b[31mil\x07\0\x9b"


def test_names_from_a_log_change_nothing_of_the_terminal() -> None:
    table = Table("name")
    table.add_row(Text(NAME))
    with OUT.capture() as printed:
        OUT.print(table)
        OUT.print(NAME, markup=False, highlight=False)
        print_line(NAME)
    assert not {"\x1b", "\x07", "\0", "\x9b"} & set(printed.get())
    assert printed.get().count("ev\ufffd[31mil") == 3
