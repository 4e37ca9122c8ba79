"""How long loops over frames report."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int], None]
"""Called with the number of frames done; may raise to stop the loop."""


def silent(done: int) -> None:
    """Report nothing."""


def after(report: Report, start: int) -> Report:
    """Return the report of a loop that begins when ``start`` frames are done."""

    def report_sum(done: int) -> None:
        report(start + done)

    return report_sum
