#!/bin/sh
# Finds a Python that fits and hands over to install.py, which creates .venv. Called by `make setup`.
# TRIALRUN_PYTHON names an interpreter to try first.
set -eu
cd "$(dirname "$0")/.."

fits='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'
for python in "${TRIALRUN_PYTHON:-}" python3.11 python3.12 python3 python; do
    # Running it is the test: a version manager's shim exists for versions that are not selected.
    if [ -n "$python" ] && "$python" -c "$fits" >/dev/null 2>&1; then
        exec "$python" requirements/install.py "$@"
    fi
done

cat >&2 <<'END'
setup: trialrun needs Python 3.11 or 3.12, and found neither. Install one, then run the same command again:
  Debian, Ubuntu:  sudo apt-get install python3.11 python3.11-venv   (or python3.12 python3.12-venv)
  Fedora:          sudo dnf install python3.11
  pyenv:           pyenv install 3.11 && pyenv local 3.11
  elsewhere:       TRIALRUN_PYTHON=/path/to/python3.11 make setup
END
exit 1
