"""Stands for a process of `tests.support.commands`, which another starts: `calling.py ADDRESS FOLDER PROGRAM …`.

It asks the fork server at the address for that program, such as a flow run, which gets its environment, streams and
signals; it ends as that does, and that ends with it. It starts in the folder, the project's, as a flow run does by the
deployments of `prefect.yaml`. This one imports little, to start at once.
"""

import json
import os
import signal
import socket
import sys
from contextlib import suppress


def main() -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(b"\0" + os.fsencode(sys.argv[1]))
        surroundings = {"environment": dict(os.environ), "cwd": sys.argv[2], "user": os.getuid()}
        request = {"program": sys.argv[3], "arguments": sys.argv[4:], **surroundings}
        line = f"{json.dumps(request)}\n".encode()
        sent = socket.send_fds(connection, [line], [0, 1, 2])
        connection.sendall(line[sent:])
        answers = connection.makefile("rb", buffering=0)
        process = int(answers.readline())

        def pass_on(number: int, _frame: object) -> None:
            with suppress(ProcessLookupError):
                os.kill(process, number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, pass_on)
        # Nothing if the server has ended, and the process with it.
        end(int(answers.readline() or -signal.SIGKILL))


def end(code: int) -> None:
    """End with an exit code, or by a signal, where the code is minus that."""
    if code >= 0:
        sys.exit(code)
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)


main()
