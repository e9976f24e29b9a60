"""The table that the demo ends with: what went in, what came out, and whether the money is where it should be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from examples.orders.accounting import COMPENSATED, COMPLETED, Books

_WIDTH = 79
_SHOWN = 20  # problems; a ledger that is wrong altogether would fill the screen


@dataclass(frozen=True, slots=True)
class Kill:
    """What the kill did."""

    victim: str
    held: int  # runs it held when it died
    taken_over: int
    after: float | None  # seconds from the kill until the first of its runs was somebody else's


Row = tuple[str, str, str]


def show(console: Console, books: Books, twice: int, kill: Kill | None, seconds: float) -> None:
    """Print the tables and the verdict.

    Args:
        twice: Orders that were delivered twice.
        kill: What the kill did; None when nobody was killed.
        seconds: From the first order to the end of the last run.
    """
    table = Table(box=box.ROUNDED, show_header=False, width=_WIDTH)
    table.add_column()
    table.add_column(justify="right", style="bold")
    table.add_column()
    for section in (_orders(books, twice), _ledger(books), _requests(books), _kill(books, kill, seconds)):
        for row in section:
            table.add_row(*row)
        table.add_section()
    console.print(table)
    console.print(_money(books))
    _verdict(console, books)


def _orders(books: Books, twice: int) -> Iterator[Row]:
    completed, compensated = books.ends.get(COMPLETED, 0), books.ends.get(COMPENSATED, 0)
    yield "orders in", str(books.orders), f"{twice} were delivered twice: one run each"
    yield "completed", str(completed), "charged and shipped"
    yield "compensated", str(compensated), "not shippable: refunded, released"
    yield "failed", str(books.orders - completed - compensated), ""


def _ledger(books: Books) -> Iterator[Row]:
    yield "charges", str(books.charges), _against(books.charges, books.orders, "one for each order")
    compensated = books.ends.get(COMPENSATED, 0)
    yield "refunds", str(books.refunds), _against(books.refunds, compensated, "one for each compensated order")
    completed = books.ends.get(COMPLETED, 0)
    yield "reservations held", str(books.held), _against(books.held, completed, "one for each completed order")
    yield "shipments", str(books.shipments), _against(books.shipments, completed, "one for each completed order")


def _against(found: int, expected: int, meaning: str) -> str:
    return meaning if found == expected else f"[red]expected {expected}, {meaning}[/]"


def _money(books: Books) -> Table:
    table = Table(box=box.ROUNDED, width=_WIDTH)
    table.add_column("money")
    for name in ("charged", "− refunded", "= in the ledger", "expected", ""):
        table.add_column(name, justify="right", style="bold" if name.startswith("=") else "")
    for currency, money in books.money.items():
        verdict = "[green]✓[/]" if money.kept == money.expected else "[bold red]✗[/]"
        sums = (money.charged, money.refunded, money.kept, money.expected)
        table.add_row(currency, *(f"{cents / 100:,.2f}" for cents in sums), verdict)
    return table


def _requests(books: Books) -> Iterator[Row]:
    yield "requests", str(books.requests), f"{books.failures} failed, {books.lost_answers} answers lost"
    yield "repetitions recognised", str(books.duplicates), "known idempotency key: nothing done"


def _kill(books: Books, kill: Kill | None, seconds: float) -> Iterator[Row]:
    if kill is None:
        yield "killed workers", "0", "no worker held enough runs half-way"
    else:
        yield "runs in the killed worker", str(kill.held), f"{kill.taken_over} taken over by another"
        yield "kill to takeover", "never" if kill.after is None else f"{kill.after:.1f} s", "its lease had to expire"
    had = f"{books.repeated_effects} had taken effect: not done twice"
    yield "steps repeated by the kill", str(books.repeated), had
    yield "duration", f"{seconds:.1f} s", ""


def _verdict(console: Console, books: Books) -> None:
    if books.balanced:
        console.print("[bold green]The books balance:[/] nothing lost, nothing charged twice.", highlight=False)
        return
    console.print(f"[bold red]The books do not balance:[/] {len(books.problems)} problems", highlight=False)
    for problem in books.problems[:_SHOWN]:
        console.print(f"  {problem}", highlight=False, markup=False, soft_wrap=True)
    if len(books.problems) > _SHOWN:
        console.print(f"  … and {len(books.problems) - _SHOWN} more", highlight=False)
