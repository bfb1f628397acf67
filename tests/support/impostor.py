"""A TLS server with a certificate of its own making: `impostor.py ADDRESS PORT FOLDER`. Prints what it is told."""

from __future__ import annotations

import socket
import ssl
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from tasks.system import certificates


def main(address: str, port: int, folder: Path) -> None:
    certificates.ensure(folder, [address], datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server_file(folder))
    with socket.create_server((address, port)) as listener:
        print("listening", flush=True)
        while True:
            connection, _ = listener.accept()
            print("connected", flush=True)
            with connection, suppress(OSError):
                connection.settimeout(5)
                with context.wrap_socket(connection, server_side=True) as secure:
                    print("told", secure.recv(1 << 16), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
