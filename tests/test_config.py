import pytest
from pydantic import Field

from tnav.config import Recipe, load_recipe
from tnav.errors import ConfigError


class Inner(Recipe):
    width_px: int = Field(default=8, gt=0)
    focal_px: float = Field(default=1.0, gt=0)


class Outer(Recipe):
    name: str
    camera: Inner = Inner()
    steps: list[int] = []


def _load(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    return load_recipe(path, Outer)


def test_good_recipe(tmp_path):
    assert _load(tmp_path, "name: a\ncamera:\n  width_px: 3\n").camera.width_px == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\ncamera:\n  widht_px: 3\n", r"bad.yaml:3: camera.widht_px: .*'width_px'"),
        (
            "name: a\ncamera:\n  focal_px: -5\n",
            r"bad.yaml:3: camera.focal_px: .*greater than 0.*-5",
        ),
        ("name: a\nsteps: [1, x]\n", r"bad.yaml:2: steps.1: .*'x'"),
        ("camera: {}\n", r"bad.yaml:1: name: field required"),
        ("name: a\ncamera:\n  focal_px: .nan\n", r"bad.yaml:3: camera.focal_px"),
        ("name: [a\n", r"bad.yaml:2: not valid YAML"),
        ("- a\n", r"bad.yaml:1: found list, expected a mapping"),
        ("", r"bad.yaml:1: found NoneType"),
    ],
)
def test_errors_name_file_line_and_field(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, text)


def test_all_errors_in_one_pass(tmp_path):
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, "nmae: a\ncamera:\n  width_px: 0\n")
    assert len(str(caught.value).splitlines()) == 3  # missing name, unknown nmae, bad width


def test_missing_file_and_binary(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read \(No such file"):
        load_recipe(tmp_path / "none.yaml", Outer)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a UTF-8 text"):
        load_recipe(tmp_path / "b.yaml", Outer)
