"""What a person sees while the demo works: on a terminal one line that moves, elsewhere plain lines."""

import shutil
import sys
import time

PLAIN_LINES_EVERY = 2.0


class Progress:
    """Prints what happened, each line with the seconds since the beginning."""

    def __init__(self) -> None:
        """Begin counting."""
        self._begin = time.monotonic()
        self._moving = False
        self._last = ""
        self._last_at = -PLAIN_LINES_EVERY

    def say(self, text: str) -> None:
        """Print something that stays."""
        if self._moving:
            print()
            self._moving = False
        print(f"{self._clock()} {text}", flush=True)

    def show(self, text: str) -> None:
        """Show how far it is, in place of what was shown before; a log file gets a line when it changed."""
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{f'{self._clock()} {text}'[:width]}", end="", flush=True)
            self._moving = True
        elif text != self._last and time.monotonic() - self._last_at >= PLAIN_LINES_EVERY:
            print(f"{self._clock()} {text}", flush=True)
            self._last, self._last_at = text, time.monotonic()

    def _clock(self) -> str:
        return f"{time.monotonic() - self._begin:6.1f} s"
