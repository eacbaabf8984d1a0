"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    """Undo what nohup, or a shell's `&`, leaves to all that is started here: tests send these signals."""
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
