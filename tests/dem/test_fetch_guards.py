"""What a download refuses, and what two of them at once do."""

import hashlib
import io
import threading
import time

import numpy as np
import pytest
import requests
import yaml
from file_server import BODY, SHA, SIZE
from filelock import FileLock
from rasters_made import write_ldem

from tnav.dem import products
from tnav.dem.download import Patience, download
from tnav.dem.manifest import load_manifest
from tnav.errors import TileError

FAST = Patience(attempts=4, backoff_s=0.001)


def _quiet(text, share):
    pass


def _url(server, path="/f.bin"):
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def _get(url, target, *, size=SIZE, progress=_quiet):
    return download(url, target, sha256=None, size=size, progress=progress, patience=FAST)


def _until(condition):
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


class _Run(threading.Thread):
    """A call in a thread, with what it said and returned."""

    def __init__(self, call):
        super().__init__(daemon=True)
        self.said, self.found, self._call = [], None, call
        self.start()

    def run(self):
        self.found = self._call(lambda text, share: self.said.append(text))

    def result(self):
        self.join(20)
        assert not self.is_alive()
        return self.found

    def waits(self):
        return any("waiting for another process" in text for text in self.said)


def test_a_second_download_waits_for_the_first_and_takes_its_file(server, tmp_path):
    target = tmp_path / "in" / "f.bin"
    server.misdeeds = ["pause"]
    first = _Run(lambda said: _get(_url(server), target, progress=said))
    _until(lambda: first.said)  # bytes lie in the partial file
    second = _Run(lambda said: _get(_url(server), target, progress=said))
    _until(lambda: second.waits() or not second.is_alive())
    assert second.is_alive()
    server.gate.set()
    assert (first.result(), second.result()) == (SHA, SHA)
    assert target.read_bytes() == BODY
    assert server.seen == [None]


def test_parts_no_longer_than_the_best_wear_patience_out(server, tmp_path):
    server.ranges = False
    server.misdeeds = ["drop", "nibble"] * 10
    with pytest.raises(TileError, match="gave up after 4 attempts"):
        _get(_url(server), tmp_path / "f.bin", size=None)
    assert len(server.seen) == 4


def test_more_than_the_stated_size_is_not_taken(server, tmp_path):
    server.files["/f.bin"] = BODY * 64
    server.misdeeds = ["no length"] * 9
    shares = []
    with pytest.raises(TileError, match="more than the 262144 bytes expected arrived; stopped"):
        _get(_url(server), tmp_path / "f.bin", progress=lambda text, share: shares.append(share))
    assert max(shares) <= 1.0
    assert len(server.seen) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["f.bin.partial.lock"]
    server.files["/f.bin"] = BODY  # the very size is
    assert _get(_url(server), tmp_path / "f.bin") == SHA


def test_a_web_page_is_refused_by_its_type(server, tmp_path):
    server.content_type = "Text/HTML; charset=utf-8"
    with pytest.raises(TileError, match="a web page came, not a file; a login page"):
        _get(_url(server), tmp_path / "f.bin", size=None)
    assert not (tmp_path / "f.bin").exists()
    server.content_type = "text/plain"
    assert _get(_url(server), tmp_path / "f.bin") == SHA


@pytest.mark.parametrize(
    ("location", "refused"),
    [
        ("http://b.test/f", True),
        ("ftp://b.test/f", True),
        ("https://b.test/f", False),
        ("//b.test/f", False),
        ("/f", False),
    ],
)
def test_no_redirect_leaves_https(tmp_path, monkeypatch, location, refused):
    asked = []

    def send(adapter, request, **_):
        asked.append(request.url)
        answer = requests.Response()
        answer.url, answer.request = request.url, request
        answer.status_code = 302 if len(asked) == 1 else 200
        answer.headers["Location"] = location
        answer.raw = io.BytesIO(BODY)
        return answer

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    if refused:
        with pytest.raises(TileError, match=f"redirects to {location}, without https: refused"):
            _get("https://a.test/g", tmp_path / "f.bin")
        assert asked == ["https://a.test/g"]
    else:
        assert _get("https://a.test/g", tmp_path / "f.bin") == SHA
        assert len(asked) == 2


@pytest.fixture
def moon(server, tmp_path, monkeypatch):
    """The files of a product on the server: its only hashes are those of the first download."""
    write_ldem(tmp_path / "made")
    for suffix in ("img", "lbl"):
        data = (tmp_path / "made" / f"LDEM_2.{suffix.upper()}").read_bytes()
        server.files[f"/ldem_2.{suffix}"] = data
    shelf = tmp_path / "datasets"
    shelf.mkdir()
    files = [{"url": _url(server, "/ldem_2.img")}, {"url": _url(server, "/ldem_2.lbl")}]
    product = {"collection": "made", "bounds_deg": [0, -90, 360, 90], "posting_m": 15161.67}
    made = {"product": "made", "citation": "nobody 2026", "licence": "none"}
    dump = {"collections": {"made": made}, "products": {"moon": {**product, "files": files}}}
    (shelf / "products.yaml").write_text(yaml.safe_dump(dump))
    (shelf / "manifest.yaml").write_text("tiles: {}\n")
    monkeypatch.setenv("TNAV_DATASETS", str(shelf))
    return server.files


@pytest.mark.parametrize(
    ("path", "sent", "said"),
    [
        ("/ldem_2.lbl", b"\n<HTML>please log in</HTML>", "a web page came"),
        ("/ldem_2.img", b"<!DOCTYPE html><html>please log in</html>", "a web page came"),
        ("/ldem_2.lbl", b"please log in", "no PDS3 label"),
        ("/ldem_2.lbl", b"PDS_VERSION_ID = PDS3\r\nEND\r\n", "what was downloaded stays in"),
    ],
)
def test_no_hash_is_trusted_before_the_product_proves_to_be_one(moon, own_tiles, path, sent, said):
    right = moon[path]
    moon[path] = sent
    with pytest.raises(TileError, match=said):
        products.fetch("moon", _quiet, patience=FAST)
    assert not (own_tiles / "checksums.yaml").exists()
    assert not load_manifest().tiles
    moon[path] = right
    for left in (own_tiles / "downloads" / "moon").glob("*.lbl"):
        if "stays in" in said:  # as the message says
            left.unlink()
    products.fetch("moon", _quiet, patience=FAST)
    kept = yaml.safe_load((own_tiles / "checksums.yaml").read_text())["sha256"]
    assert sorted(kept.values()) == sorted(
        hashlib.sha256(moon[f"/ldem_2.{suffix}"]).hexdigest() for suffix in ("img", "lbl")
    )


def test_a_second_fetch_of_a_product_waits_for_the_first(server, moon, own_tiles):
    own_tiles.mkdir()
    with FileLock(own_tiles / ".moon.fetch.lock"):
        fetching = _Run(lambda said: products.fetch("moon", said, patience=FAST))
        _until(lambda: fetching.waits() or not fetching.is_alive())
        assert server.seen == []
    assert fetching.result().name == "moon"
    assert np.count_nonzero([not p.name.startswith(".") for p in own_tiles.iterdir()]) == 4
    assert list((own_tiles / "downloads").iterdir()) == []
