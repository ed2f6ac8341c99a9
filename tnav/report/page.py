"""What the pages share: their templates' environment, figures as JSON, whole files or none."""

import json
from pathlib import Path

import jinja2
from markupsafe import Markup

from tnav.errors import RunFileError
from tnav.files import written_aside
from tnav.report.layout import Figure


def environment() -> jinja2.Environment:
    """For the templates of this folder; what a template asks for and is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: Path, template: str, **values: object) -> Path:
    """Fill a template of this folder and write it: beside its place, then renamed.

    Args:
        path: the page.
        template: name of the template.
        values: that it asks for.

    Raises:
        RunFileError: the page cannot be written.
    """
    write_text(path, environment().get_template(template).render(**values))
    return path


def write_text(path: Path, text: str) -> None:
    """A whole text file or none. Raises RunFileError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFileError(f"{path}: cannot be written ({error.strerror})") from error


def figure_json(figure: Figure) -> Markup:
    """Strict JSON that cannot end its script element."""
    text = json.dumps(figure.spec, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - escaped above
