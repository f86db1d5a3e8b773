"""A pytest plugin: a test that fails is named when it does, for a run that may be cut off before its summary."""

from __future__ import annotations

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        print(f"\nFAILED {report.nodeid} ({report.when}): {_reason(report)}", flush=True)


def _reason(report: pytest.TestReport) -> str:
    """The error's first line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longreprtext).partition("\n")[0]
