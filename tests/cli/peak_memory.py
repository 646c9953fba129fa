"""Runs a command and prints the peak resident set of it alone, in bytes, after its output.

A process starts with the peak of the one that it was started from, so a test must not start the command itself.
"""

import os
import sys

pid = os.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
