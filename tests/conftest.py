"""What every test may rely on."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    # A shell without job control starts what runs in the background with SIGINT ignored, and all that this starts inherits it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
