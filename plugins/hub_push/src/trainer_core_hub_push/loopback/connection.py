"""One connection to the Hub: reads requests, meets faults, sends answers."""

from __future__ import annotations

import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final

from trainer_core_hub_push.loopback.answers import Answer, Call, RefusedError, answer_to, find_handler
from trainer_core_hub_push.loopback.faults import Fault, Request

if TYPE_CHECKING:
    from trainer_core_hub_push.loopback.hub import LoopbackHub

_CHUNK_BYTES: Final = 16 * 1024


class Server(ThreadingHTTPServer):
    """Listens for connections; each has a thread."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub, port: int) -> None:
        self.hub = hub
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Connection)

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override] # one kind of socket
        """Notes a connection, so that it can be closed."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override] # the same
        """Closes a connection."""
        self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """Closes all connections, so that their threads end."""
        for one in list(self._open):
            close(one)

    def handle_error(self, request: object, client_address: object) -> None:
        """Leaves a client that went away alone; an error of ours is kept for whoever stops the server."""
        import sys

        error = sys.exception()
        if error is not None and not isinstance(error, (ConnectionError, OSError)):
            self.hub.errors.append(error)


def close(connection: socket.socket) -> None:
    """Closes a connection in both directions, if it is open."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is closed


class Connection(BaseHTTPRequestHandler):
    """Reads the requests of one client."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave together

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the requests are kept in a list."""

    def do_GET(self) -> None:
        """Answers a request of any method."""
        hub, (path, _, query) = self.server.hub, self.path.partition("?")
        request, faults = hub.arrived(Request(self.command, path, query))
        kinds = {fault.kind for fault in faults}
        if "cut" in kinds:
            self._read_body(share=0.5)
            return self._cut()
        body = self._read_body()
        request.num_bytes = len(body)
        hub.pause(hub.delay + sum(fault.seconds for fault in faults))
        answer = _refusal(faults) or self._answer(path, query, body)
        if "lost" in kinds:
            return self._cut()
        request.status = answer.status
        return self._send(answer, cut="cut_answer" in kinds)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 # the base class calls them so

    def _answer(self, path: str, query: str, body: bytes) -> Answer:
        hub, found = self.server.hub, find_handler(self.command, path)
        if found is None:
            return RefusedError(404, f"No such path: {path}").answer
        words, token = self.headers.get("Authorization", "").split(), None
        if len(words) == 2:
            token = words[1]
            if token not in hub.store.accounts:
                return RefusedError(401, "Invalid credentials in Authorization header").answer
        account = None if token is None else hub.store.accounts[token]
        handler, parts = found
        with hub.lock:
            headers = {name.lower(): text for name, text in self.headers.items()}
            call = Call(hub.store, hub.endpoint, account, query, headers, body, parts)
            return answer_to(call, handler)

    def _send(self, answer: Answer, *, cut: bool) -> None:
        body, headers = answer.encoded()
        self.send_response(answer.status)
        for name, text in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, " ".join(text.split()))
        self.end_headers()
        if self.command != "HEAD":
            self._write(body[: len(body) // 2] if cut else body)
        self.wfile.flush()
        if cut:
            self._cut()

    def _write(self, body: bytes) -> None:
        hub = self.server.hub
        for start in range(0, len(body), _CHUNK_BYTES):
            chunk = body[start : start + _CHUNK_BYTES]
            hub.line.carry(len(chunk), hub.pause)
            self.wfile.write(chunk)

    def _read_body(self, share: float = 1.0) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            return self._read_chunks()
        return self._read(int(int(self.headers.get("Content-Length") or 0) * share))

    def _read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self._read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _read(self, num_bytes: int) -> bytes:
        hub, parts = self.server.hub, []
        while num_bytes > 0:
            part = self.rfile.read(min(num_bytes, _CHUNK_BYTES))
            if not part:
                raise ConnectionError("the client went away")
            hub.line.carry(len(part), hub.pause)
            parts.append(part)
            num_bytes -= len(part)
        return b"".join(parts)

    def _cut(self) -> None:
        self.close_connection = True
        close(self.connection)


def _refusal(faults: list[Fault]) -> Answer | None:
    """Gives the answer of a fault that stands in for the true one."""
    for fault in faults:
        if isinstance(fault.kind, int):
            after = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
            return RefusedError(fault.kind, "This error was asked for", **after).answer
    return None
