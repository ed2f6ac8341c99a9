"""A server on this machine that misbehaves in the ways servers do."""

import hashlib
import http.server
import threading

import numpy as np

SIZE = 8 * 32768
BODY = np.random.default_rng(7).integers(0, 256, SIZE, dtype=np.uint8).tobytes()
SHA = hashlib.sha256(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Files by path, and a list of misdeeds, one taken off for each request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.misdeeds, self.seen = {"/f.bin": BODY}, [], []
        self.ranges, self.etag, self.content_type = True, '"one"', ""
        self.gate = threading.Event()  # that "pause" waits for in the middle of a file

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.seen.append(asked)
        misdeed = server.misdeeds.pop(0) if server.misdeeds else None
        if isinstance(misdeed, int):
            return self.send_error(misdeed)
        body = server.files.get(self.path)
        if body is None:
            return self.send_error(404)
        start = 0
        same = self.headers.get("If-Range") == server.etag
        if asked and server.ranges and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.send_error(416)
        part = bytearray(body[start:])
        self.send_response(206 if start else 200)
        if start:
            first = start + 1 if misdeed == "elsewhere" else start
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.content_type:
            self.send_header("Content-Type", server.content_type)
        if misdeed != "no length":
            self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if misdeed == "drop":
            part = part[: len(part) // 2]
        if misdeed == "nibble":
            part = part[:32768]
        if misdeed == "pause":
            self.wfile.write(part[: len(part) // 2])
            assert server.gate.wait(20)
            part = part[len(part) // 2 :]
        if misdeed == "corrupt":
            part[len(part) // 2] ^= 1
        self.wfile.write(part)
        return None
