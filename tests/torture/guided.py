"""Run a fuzz target under atheris, guided by coverage of the package.

python -m tests.torture.guided TARGET SECONDS
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["reaper"]):
    from tests.torture.fuzz import CORPUS, TARGETS


def main() -> None:
    target, seconds = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix="reaper-corpus-") as folder:
        for number, data in enumerate(CORPUS):
            (Path(folder) / str(number)).write_bytes(data)
        options = [f"-max_total_time={seconds}", "-max_len=8192", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], folder, *options], TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
