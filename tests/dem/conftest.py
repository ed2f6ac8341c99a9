import threading

import pytest
from file_server import Server


@pytest.fixture(autouse=True)
def own_tiles(tmp_path, monkeypatch):
    """Every test has a folder of user tiles of its own."""
    folder = tmp_path / "own"
    monkeypatch.setenv("TNAV_TILES", str(folder))
    return folder


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()
