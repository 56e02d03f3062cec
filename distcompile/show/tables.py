"""Tables for a terminal of any width, a file or a pipe."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table


def show(*tables: Table) -> None:
    """Print tables; where one with headings is wider than the terminal, each row becomes lines of its own."""
    console = Console(highlight=False)
    for table in tables:
        width = Console(width=10_000).measure(table).maximum  # at which nothing is wrapped
        if not console.is_terminal and "COLUMNS" not in os.environ:
            Console(highlight=False, width=max(width, console.width)).print(table)
        elif table.show_header and width > console.width:
            console.print(_upright(table))
        else:
            console.print(table)


def _upright(table: Table) -> Table:
    """The same table with a line for each cell: heading, value."""
    upright = Table(title=table.title, show_header=False)
    columns = [(str(column.header), list(column.cells)) for column in table.columns]
    for row in range(table.row_count):
        for heading, cells in columns:
            upright.add_row(heading, cells[row], end_section=heading == columns[-1][0])
    return upright
