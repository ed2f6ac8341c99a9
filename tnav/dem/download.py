"""Files over HTTP that arrive whole: resumed after a break, hashed, then placed (pooch).

One process at a time writes to a partial file; another waits for it, then finds the file there.

pooch hashes what arrives and moves it into place; its own downloader starts anew after every break,
which a product of gigabytes does not survive, so this one asks for the rest (HTTP Range with
If-Range, RFC 9110 sections 13.1.5 and 14.2) and takes the whole where the server cannot.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies

from filelock import FileLock, Timeout

from tnav.errors import TileError

_CHUNK_BYTES = 1 << 15  # a break loses at most these
_TIMEOUT_S = (15.0, 60.0)  # to connect; between bytes
_BACKOFF_MAX_S = 60.0
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
WEB_PAGE = "a web page came, not a file; a login page of the network, or a wrong address?"
Progress = Callable[[str, float], None]


class _BreakError(Exception):
    """A break that another attempt may mend; its text says what happened."""

    def __init__(self, text: str, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on after breaks."""

    attempts: int = 6  # in a row that bring no more than the best before them
    backoff_s: float = 1.0  # doubles from attempt to attempt


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None,
    size: int | None,
    progress: Progress,
    patience: Patience | None = None,
    stated_in: Path | None = None,
) -> str:
    """Fetch a file, or keep it where it is there already with the right hash.

    Args:
        url: http or https.
        target: where it goes once it is whole; what has arrived so far stays beside it.
        sha256: of the whole, or None where nobody has stated it.
        size: bytes of the whole, or None.
        progress: called with what is done and the share of it.
        patience: with breaks.
        stated_in: the file that the sha256 was read from, for messages.

    Returns:
        The sha256 of the file.

    Raises:
        TileError: offline, refused, not there, broken too often, a web page, or other bytes than
            expected.
    """
    with held(lock_of(target), progress):
        return _fetch(url, target, sha256, size, progress, patience or Patience(), stated_in)


def lock_of(target: Path) -> Path:
    """The lock of a file that is being downloaded."""
    return target.with_name(target.name + ".partial.lock")


@contextmanager
def held(lock: Path, progress: Progress) -> Iterator[None]:
    """A lock, waited for while another process holds it; its file stays for those who wait."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    holder = FileLock(lock)
    try:
        holder.acquire(timeout=0)
    except Timeout:
        progress("waiting for another process that fetches the same", 0.0)
        holder.acquire()
    try:
        yield
    finally:
        holder.release()


def _fetch(
    url: str,
    target: Path,
    sha256: str | None,
    size: int | None,
    progress: Progress,
    patience: Patience,
    stated_in: Path | None,
) -> str:
    import pooch  # type: ignore[import-untyped]

    pooch.get_logger().setLevel("ERROR")
    fetcher = _Resuming(target, size, progress, patience)
    known = f"sha256:{sha256}" if sha256 else None
    store = pooch.create(
        path=target.parent,
        base_url="",
        registry={target.name: known},
        urls={target.name: url},
        retry_if_failed=1 if sha256 else 0,  # of bytes that were changed on their way
    )
    try:
        store.fetch(target.name, downloader=fetcher)
    except ValueError as error:
        said = f" ({stated_in})" if stated_in else ""
        remedy = f"; if it was replaced, take its line out of {stated_in}" if stated_in else ""
        raise TileError(
            f"{url}: what arrived has another sha256 than {str(sha256)[:12]}...{said}, twice; the "
            f"file was replaced there, or something on the way alters it{remedy}"
        ) from error
    return str(pooch.file_hash(str(target), alg="sha256"))


class _Resuming:
    """A pooch downloader that keeps what has arrived across breaks and runs."""

    def __init__(
        self, target: Path, size: int | None, progress: Progress, patience: Patience
    ) -> None:
        self._partial = target.with_name(target.name + ".partial")
        self._state = target.with_name(target.name + ".partial.json")
        self._size, self._progress, self._patience = size, progress, patience

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> None:
        """Bring the whole file to a place that pooch names."""
        failures, best = 0, 0  # the longest part so far: without ranges it starts anew each time
        while True:
            try:
                self._attempt(url)
                break
            except _BreakError as broken:
                have = self._have()
                failures = 1 if have > best else failures + 1
                best = max(best, have)
                if failures >= self._patience.attempts:
                    raise TileError(
                        f"{url}: {broken}; gave up after {failures} attempts with {have} bytes, "
                        "which are kept: run it again to go on"
                    ) from broken
                wait_s = max(self._patience.backoff_s * 2 ** (failures - 1), broken.wait_s)
                wait_s = min(wait_s, _BACKOFF_MAX_S)
                self._progress(f"{broken}; again in {wait_s:.0f} s", 0.0)
                time.sleep(wait_s)
        self._state.unlink(missing_ok=True)
        os.replace(self._partial, output_file)

    def _attempt(self, url: str) -> None:
        import requests

        headers = {"Accept-Encoding": "identity", **self._range(url)}
        try:
            with requests.get(
                url,
                headers=headers,
                stream=True,
                timeout=_TIMEOUT_S,
                hooks={"response": _refuse_downgrade},
            ) as answer:
                self._receive(url, answer)
        except requests.exceptions.RequestException as error:
            raise _explained(url, error) from error

    def _receive(self, url: str, answer: Any) -> None:
        status = answer.status_code
        if status in _RETRY_STATUS:
            after = answer.headers.get("Retry-After", "")
            raise _BreakError(f"server says {status}", float(after) if after.isdigit() else 0.0)
        if status == 416:
            self._forget()
            raise _BreakError("the file there is shorter than what had arrived: starting anew")
        if status not in (200, 206):
            raise TileError(f"{url}: server says {status} {answer.reason}; is the address right?")
        if answer.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise TileError(f"{url}: {WEB_PAGE}")
        start, total = self._place(answer)
        if total is not None and self._size is not None and total != self._size:
            raise TileError(
                f"{url}: {total} bytes there, {self._size} expected; the product was replaced"
            )
        if start == 0:
            self._remember(url, answer, total)
        most = total if self._size is None else self._size
        with self._partial.open("r+b" if start else "wb") as stream:
            stream.seek(start)
            for chunk in answer.iter_content(_CHUNK_BYTES):
                if most is not None and stream.tell() + len(chunk) > most:
                    self._forget()
                    raise TileError(f"{url}: more than the {most} bytes expected arrived; stopped")
                stream.write(chunk)
                self._show(stream.tell(), total)
        have = self._have()
        if total is not None and have != total:
            raise _BreakError(f"the connection ended at {have} of {total} bytes")
        if self._size is not None and have != self._size:
            self._forget()
            raise _BreakError(f"{have} bytes arrived, {self._size} expected")

    def _place(self, answer: Any) -> tuple[int, int | None]:
        """Where the answer's bytes belong, and how long the whole is."""
        if answer.status_code == 200:  # the whole: no range asked for, ignored, or a changed file
            length = answer.headers.get("Content-Length", "")
            return 0, int(length) if length.isdigit() else None
        match = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip()
        )
        if match is None or int(match[1]) != self._have():
            self._forget()
            raise _BreakError("the server sent another part than was asked for: starting anew")
        return int(match[1]), None if match[2] == "*" else int(match[2])

    def _range(self, url: str) -> dict[str, str]:
        """Headers that ask for the rest, if it is sure to be of the same file."""
        have = self._have()
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            state = {}
        if not have or state.get("url") != url or not state.get("validator"):
            self._forget()
            return {}
        return {"Range": f"bytes={have}-", "If-Range": state["validator"]}

    def _remember(self, url: str, answer: Any, total: int | None) -> None:
        etag = answer.headers.get("ETag", "")
        strong = etag if etag and not etag.startswith("W/") else ""
        validator = strong or answer.headers.get("Last-Modified", "")
        state = {"url": url, "validator": validator, "bytes": total}
        self._state.write_text(json.dumps(state), encoding="utf-8")

    def _forget(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)

    def _have(self) -> int:
        return self._partial.stat().st_size if self._partial.exists() else 0

    def _show(self, have: int, total: int | None) -> None:
        whole = total or self._size
        text = f"{have / 1e6:.1f} MB" + (f" of {whole / 1e6:.1f}" if whole else "")
        self._progress(text, have / whole if whole else 0.0)


def _refuse_downgrade(answer: Any, **_: Any) -> None:
    """Stop at a redirect that leaves https: nobody vouches for what comes from there."""
    if not answer.is_redirect or urlsplit(answer.url).scheme != "https":
        return
    onward = urljoin(answer.url, answer.headers["Location"])
    if urlsplit(onward).scheme != "https":
        raise TileError(f"{answer.url}: the server redirects to {onward}, without https: refused")


def _explained(url: str, error: Exception) -> Exception:
    """A requests error as one clear line: to try again, or to stop at."""
    from requests import exceptions

    host = urlsplit(url).hostname
    if isinstance(error, exceptions.ProxyError):
        proxy = getproxies().get(urlsplit(url).scheme, "the system's")
        return TileError(
            f"{url}: the proxy ({proxy}) does not answer or refuses; check HTTPS_PROXY, HTTP_PROXY "
            "and NO_PROXY"
        )
    if isinstance(error, exceptions.SSLError):
        return TileError(f"{url}: no trusted TLS connection to {host}; check clock, proxy and CA")
    if "NameResolutionError" in repr(error) or "getaddrinfo" in repr(error):
        return TileError(
            f"{url}: {host} cannot be resolved; offline, or behind a proxy (set HTTPS_PROXY)?"
        )
    if isinstance(error, exceptions.Timeout):
        return _BreakError(f"{host} fell silent")
    if isinstance(error, exceptions.ConnectionError | exceptions.ChunkedEncodingError):
        return _BreakError(f"the connection to {host} failed or broke off")
    return TileError(f"{url}: {type(error).__name__}: {str(error).splitlines()[0]}")
