import pytest

from tnav.files import written_aside


def test_the_file_appears_whole(tmp_path):
    path = tmp_path / "a.txt"
    with written_aside(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        _write_half(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def _write_half(path):
    with written_aside(path) as part:
        part.write_text("half")
        _ = 1 / 0
