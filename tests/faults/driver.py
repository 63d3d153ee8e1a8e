"""`python -m tests.faults.driver ARGS`: the command line with the toy kind, to be killed by tests."""

import tests.toy  # noqa: F401 (registers the kind)
from orchestration.cli import main

if __name__ == "__main__":
    main()
