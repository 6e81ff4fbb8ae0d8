"""Runs the Python examples of README.md: `python tests/readme.py ARTIFACTS`.

Each block runs by itself in a folder where `artifacts` is the given one; it must end well and
print something. Needs pyarrow and duckdb.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def main() -> None:
    artifacts = Path(sys.argv[1]).resolve()
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    if not blocks:
        sys.exit("README.md has no Python example")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "artifacts").symlink_to(artifacts)
        for number, block in enumerate(blocks, 1):
            run = [sys.executable, "-c", block]
            done = subprocess.run(run, cwd=folder, capture_output=True, text=True)
            if done.returncode != 0 or len(done.stdout.split()) < 5:
                sys.exit(f"example {number} of README.md:\n{block}{done.stdout}{done.stderr}")
            print(f"example {number}: {len(done.stdout.splitlines())} lines")


if __name__ == "__main__":
    main()
