"""Whole files or none: write aside, then rename."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to; it takes the name when all went well, else it goes."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def whole_lines(path: Path) -> list[str]:
    """Lines of a file that runs append to, none where there is no file.

    A last line without its end is what an interrupted run leaves: it is taken off the file.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        with written_aside(path) as aside:
            aside.write_text(whole, encoding="utf-8")
    return whole.splitlines()
