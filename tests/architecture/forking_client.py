"""Hand a command to `forking_server.py`, and end with its exit code."""

import json
import os
import socket
import sys
from pathlib import Path

if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(sys.argv[1])
        command = {"folder": str(Path.cwd()), "variables": dict(os.environ), "words": sys.argv[2:]}
        content = json.dumps(command).encode()
        socket.send_fds(connection, [len(content).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(content)
        sys.exit(int(connection.recv(16) or b"1"))
