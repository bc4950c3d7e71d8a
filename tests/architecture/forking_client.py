"""Hand a command to `forking_server.py`, and end with its exit code."""

import json
import os
import socket
import sys
from pathlib import Path

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
    connection.connect(sys.argv[1])
    command = {"folder": str(Path.cwd()), "variables": dict(os.environ), "words": sys.argv[2:]}
    socket.send_fds(connection, [json.dumps(command).encode()], [0, 1, 2])
    sys.exit(int(connection.recv(16) or b"1"))
