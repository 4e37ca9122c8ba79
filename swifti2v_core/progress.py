"""Progress reports of loops over frames."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int], None]
"""Called with the number of finished frames; may raise to stop the loop."""


def silent(done: int) -> None:
    """Report nothing."""


def counting_from(report: Report, start: int) -> Report:
    """Return a report that adds the ``start`` frames of earlier loops to the count."""

    def report_total(done: int) -> None:
        report(start + done)

    return report_total
