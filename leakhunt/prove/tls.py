"""TLS above a plain transport, with the plain transport in our hands.

asyncio's own TLS reads up to half a megabyte ahead (so a slow reader would not be slow) and
does not let one end the connection as a dying client does: half-closed, or by a reset
without a word. Here the socket stays ours and TLS is only a translation of bytes.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Final

_PIECE: Final = 1 << 16


def client_context(ca_file: str | None, insecure: bool) -> ssl.SSLContext:
    """A context for clients. Raises ``OSError`` or ``ssl.SSLError`` for an unusable file."""
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class TlsLayer:
    """One client's TLS session between two memory buffers.

    :param send: takes ciphertext for the transport.
    """

    __slots__ = ("_incoming", "_object", "_outgoing", "_send", "ended", "established")

    def __init__(
        self, context: ssl.SSLContext, server_name: str, send: Callable[[bytes], None]
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=False, server_hostname=server_name
        )
        self._send = send
        self.established = False
        self.ended = False
        """The server sent close_notify."""

    def handshake(self) -> None:
        """Go on with the handshake as far as the bytes received allow."""
        try:
            self._object.do_handshake()
            self.established = True
        except ssl.SSLWantReadError:
            pass
        finally:
            self._flush()  # an alert too

    def write(self, data: bytes) -> None:
        """Encrypt and send. The session must be established."""
        self._object.write(data)
        self._flush()

    def feed(self, data: memoryview) -> None:
        """Take ciphertext. Then call :meth:`read` until it gives nothing."""
        self._incoming.write(data)
        if not self.established:
            self.handshake()

    def read(self) -> bytes:
        """Some decrypted bytes, or none. Raises ``ssl.SSLError`` when they are no TLS."""
        if not self.established:
            return b""
        try:
            data = self._object.read(_PIECE)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLZeroReturnError:
            data = b""
        finally:
            self._flush()
        # Python reports close_notify by an error or by no data, depending on our own side.
        self.ended = not data
        return data

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._send(self._outgoing.read())
