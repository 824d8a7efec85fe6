"""Prints what a program can know about how it was started, then ends as it is told.

``python run_facts.py EXIT_CODE`` prints one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys

modules = sorted(sys.modules)
print(
    json.dumps(
        {
            "modules": modules,
            "path": sys.path,
            "caches": sorted(sys.path_importer_cache),
            "argv": sys.argv,
            "executable": sys.executable,
            "flags": str(sys.flags),
            "name": __name__,
            "cwd": os.getcwd(),
            "stdin": sys.stdin.read(),
            "sigint": str(signal.getsignal(signal.SIGINT)),
            "environment": {
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("LEAKHUNT_", "PYTHONPATH"))
            },
        }
    )
)
print("last words", file=sys.stderr)
if __name__ == "__main__":
    sys.exit(int(sys.argv[1]))
