"""Run the program in forks of one process that has loaded the libraries: a fresh process takes seconds to load them.

`python forking_server.py SOCKET` waits for commands at a socket of the file system. `python -ES forking_client.py
SOCKET WORDS...` hands over one command, with its folder, its variables and its three streams, and ends as it ends.
"""

import json
import os
import socket
import sys


def serve(place: str) -> None:
    """Fork a child for every command; a child of that runs it, so that commands of one pipe run side by side."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(place)
        server.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection, _ = server.accept()
            if not os.fork():
                server.close()
                answer(connection)
            connection.close()
            reap()


def answer(connection: socket.socket) -> None:
    """Run the command of a connection and send its exit code; does not come back."""
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as file:
        content = file.read(int.from_bytes(size, "big"))
    child = os.fork()
    if not child:
        connection.close()
        os._exit(run_command(json.loads(content), streams))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(str(code % 256).encode())
    os._exit(0)


def run_command(command: dict[str, object], streams: list[int]) -> int:
    """Run the program in the folder, with the variables and streams, that a fresh process would have; return its code.

    What libraries read of the variables while they are loaded stays the server's.
    """
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["variables"])
    sys.argv = ["sefi", *command["words"]]
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    from sefi.cli.app import app

    code = 1
    try:
        app(prog_name="sefi")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def reap() -> None:
    """Take note of the children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    import sefi.api
    import sefi.cli.app
    import sefi.methods.sefi
    import sefi.report.attention_figure  # noqa: F401

    serve(sys.argv[1])
