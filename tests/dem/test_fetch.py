"""Downloads against a server on this machine that misbehaves in the ways servers do."""

import hashlib

import numpy as np
import pytest
import yaml
from file_server import BODY, SHA, SIZE
from rasters_made import write_ldem

from tnav.cli import main
from tnav.dem.download import Patience, download
from tnav.dem.products import load_catalogue
from tnav.dem.tiles import load_manifest, open_tile, sample_height_m
from tnav.errors import TileError

FAST = Patience(attempts=4, backoff_s=0.001)


def _url(server, path="/f.bin"):
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def _get(server, tmp_path, *, sha256=SHA, size=SIZE, path="/f.bin", patience=FAST):
    target = tmp_path / "in" / "f.bin"
    said = []
    found = download(
        _url(server, path),
        target,
        sha256=sha256,
        size=size,
        progress=lambda text, share: said.append((text, share)),
        patience=patience,
    )
    assert target.read_bytes() == BODY
    assert found == SHA
    assert _left(tmp_path) == ["f.bin"]
    return said


def _left(tmp_path):
    """What lies there besides the locks, which stay."""
    return sorted(p.name for p in (tmp_path / "in").glob("*") if p.suffix != ".lock")


def test_a_file_arrives_whole_with_its_hash_and_is_not_fetched_twice(server, tmp_path):
    said = _get(server, tmp_path)
    assert said[-1] == ("0.3 MB of 0.3", 1.0)
    _get(server, tmp_path)
    assert server.seen == [None]


@pytest.mark.parametrize("known", [True, False])
def test_dropped_connections_go_on_where_they_broke(server, tmp_path, known):
    server.misdeeds = ["drop", "drop", "drop"]
    said = _get(server, tmp_path, size=SIZE if known else None)
    starts = [0 if r is None else int(r[6:-1]) for r in server.seen]
    assert starts == [0, 131_072, 196_608, 229_376]
    assert any("again in" in text for text, _ in said)


def test_a_run_that_gave_up_is_taken_up_by_the_next(server, tmp_path):
    server.misdeeds = ["drop", 503, 503, 503]
    with pytest.raises(TileError, match=r"503; gave up .* 131072 bytes, which are kept"):
        _get(server, tmp_path)
    assert _left(tmp_path) == ["f.bin.partial", "f.bin.partial.json"]
    _get(server, tmp_path)
    assert server.seen[-1] == "bytes=131072-"


def test_progress_renews_patience(server, tmp_path):
    server.misdeeds = ["nibble"] * 7  # more than the attempts, each with new bytes
    _get(server, tmp_path)
    assert len(server.seen) == 8


def test_a_server_that_ignores_ranges_sends_the_whole_again(server, tmp_path):
    server.misdeeds, server.ranges = ["drop"], False
    _get(server, tmp_path)
    assert server.seen == [None, "bytes=131072-"]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_strong_validator_a_file_starts_anew(server, tmp_path, etag):
    server.misdeeds, server.etag = ["drop"], etag
    _get(server, tmp_path)
    assert server.seen == [None, None]


def test_a_file_that_changed_meanwhile_is_taken_whole(server, tmp_path):
    server.files["/f.bin"] = bytes(len(BODY))
    server.misdeeds = ["drop", 503, 503, 503]
    with pytest.raises(TileError, match="gave up"):
        _get(server, tmp_path)
    server.files["/f.bin"], server.etag = BODY, '"two"'
    _get(server, tmp_path)
    assert server.seen[-1] == "bytes=131072-"  # asked for, and answered with the whole


def test_another_part_than_asked_for_is_not_glued_on(server, tmp_path):
    server.misdeeds = ["drop", "elsewhere"]
    _get(server, tmp_path)
    assert server.seen == [None, "bytes=131072-", None]


def test_a_partial_that_is_too_long_starts_anew(server, tmp_path):
    server.misdeeds = ["drop", 503, 503, 503]
    with pytest.raises(TileError, match="gave up"):
        _get(server, tmp_path)
    (tmp_path / "in" / "f.bin.partial").write_bytes(BODY + b"more")
    _get(server, tmp_path)
    assert server.seen[-2:] == ["bytes=262148-", None]


def test_503_then_200_and_404_and_500_for_ever(server, tmp_path):
    server.misdeeds = [503, 503]
    _get(server, tmp_path)
    with pytest.raises(TileError, match="server says 404 Not Found; is the address right"):
        _get(server, tmp_path / "b", path="/other.bin")
    server.misdeeds = [500] * 9
    with pytest.raises(TileError, match="server says 500; gave up after 4 attempts with 0 bytes"):
        _get(server, tmp_path / "c")
    assert _left(tmp_path / "b") + _left(tmp_path / "c") == []


def test_truncation_without_a_length_is_caught_by_the_size(server, tmp_path):
    server.files["/f.bin"] = BODY[:1000]
    server.misdeeds = ["no length"] * 9
    with pytest.raises(TileError, match="1000 bytes arrived, 262144 expected"):
        _get(server, tmp_path)
    server.misdeeds = []
    with pytest.raises(TileError, match="1000 bytes there, 262144 expected; the product was repl"):
        _get(server, tmp_path)
    assert "f.bin" not in _left(tmp_path)


def test_corrupt_bytes_are_fetched_again_once_and_then_refused(server, tmp_path):
    server.misdeeds = ["corrupt"]
    _get(server, tmp_path)
    server.misdeeds = ["corrupt", "corrupt"]
    with pytest.raises(TileError, match=r"another sha256 than .*, twice"):
        _get(server, tmp_path / "b")
    assert _left(tmp_path / "b") == []


def test_refused_connections_and_proxies_are_one_line(server, tmp_path, monkeypatch):
    url = _url(server)
    nothing = {"sha256": None, "size": None, "progress": lambda text, share: None}
    server.shutdown()
    server.server_close()
    with pytest.raises(TileError, match=r"the connection to 127.0.0.1 failed.*gave up after 4"):
        download(url, tmp_path / "f.bin", patience=FAST, **nothing)
    monkeypatch.setenv("HTTP_PROXY", url)
    monkeypatch.setenv("http_proxy", url)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(TileError, match=r"the proxy \(http.*check HTTPS_PROXY") as caught:
        download("http://example.invalid/f", tmp_path / "f.bin", patience=FAST, **nothing)
    assert "\n" not in str(caught.value)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name)
    with pytest.raises(TileError, match=r"example.invalid cannot be resolved; offline"):
        download("http://example.invalid/f", tmp_path / "f.bin", patience=FAST, **nothing)


@pytest.fixture
def catalogue(server, tmp_path, monkeypatch):
    """A datasets folder whose one product is a LOLA GDR on the server."""
    write_ldem(tmp_path / "made")
    for suffix in ("IMG", "LBL"):
        data = (tmp_path / "made" / f"LDEM_2.{suffix}").read_bytes()
        server.files[f"/ldem_2.{suffix.lower()}"] = data
    image = server.files["/ldem_2.img"]
    shelf = tmp_path / "datasets"
    shelf.mkdir()
    files = [{"url": _url(server, "/ldem_2.img"), "bytes": len(image)}]
    files.append({"url": _url(server, "/ldem_2.lbl")})
    made = {"product": "made", "citation": "nobody 2026", "licence": "none"}
    product = {"collection": "made", "bounds_deg": [0, -90, 360, 90], "posting_m": 15161.67}
    dump = {"collections": {"made": made}, "products": {"moon": {**product, "files": files}}}
    (shelf / "products.yaml").write_text(yaml.safe_dump(dump))
    (shelf / "manifest.yaml").write_text("tiles: {}\n")
    monkeypatch.setenv("TNAV_DATASETS", str(shelf))
    return shelf


def _run(argv, code=0):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert (stop.value.code or 0) == code


def test_fetch_downloads_imports_and_trusts_the_first_hash(server, catalogue, own_tiles, capsys):
    _run(["dem", "fetch"])
    assert "moon: 1 MB, posting 15161.7 m" in (listed := capsys.readouterr().out)
    assert "nobody 2026" in listed
    _run(["dem", "fetch", "moon"])
    said = capsys.readouterr().out
    digest = hashlib.sha256(server.files["/ldem_2.img"]).hexdigest()
    assert f"ldem_2.img: sha256 {digest}, taken on trust at this first download" in said
    assert "radius in m less 1737.4 km" in said
    entry = load_manifest().tiles["moon"]
    assert (entry.citation, entry.source_sha256) == ("nobody 2026", digest)
    assert np.isfinite(sample_height_m(open_tile("moon"), np.array([60.5]), np.array([-4.6]))).all()
    assert not list((own_tiles / "downloads").iterdir())

    _run(["dem", "fetch", "moon"], 2)  # before anything is downloaded again
    assert "already in" in capsys.readouterr().err
    changed = bytearray(server.files["/ldem_2.img"])
    changed[1000] ^= 1
    server.files["/ldem_2.img"] = bytes(changed)
    _run(["dem", "fetch", "moon", "--overwrite"], 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "another sha256 than" in lines[0]
    assert f"take its line out of {own_tiles / 'checksums.yaml'}" in lines[0]
    assert load_manifest().tiles["moon"].source_sha256 == digest


def test_fetch_of_an_unknown_product_names_the_known(catalogue, capsys):
    _run(["dem", "fetch", "mars"], 2)
    assert "mars: no such product" in capsys.readouterr().err


def test_the_shipped_catalogue_is_sound():
    products = load_catalogue().products
    assert len(products) > 40
    for name, product in products.items():
        west, south, east, north = product.bounds_deg
        assert -180 <= west < east <= 360, name
        assert -90 <= south < north <= 90, name
        assert all(file.url.startswith("https://") for file in product.files), name
        stems = {file.url.rsplit(".", 1)[0] for file in product.files}
        assert len(stems) == 1, name
    urls = [file.url for product in products.values() for file in product.files]
    assert len(set(urls)) == len(urls)
