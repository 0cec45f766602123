"""A launcher as torchrun is to a kill: starts the command in a session of its own and waits; SIGTERM ends it alone."""

import subprocess
import sys

sys.exit(subprocess.run(sys.argv[1:], start_new_session=True).returncode)
