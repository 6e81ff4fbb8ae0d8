"""Our binaries and their peers, side by side: `make bench-peers`.

Runs every file of `rows/` (or those named with --rows) and writes docs/benchmarks.json and
docs/benchmarks.md. Rows that are not run keep their earlier figures, and so do other
processors: a row has a table for each.
"""

import argparse
import datetime
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", default=[], help="files of rows/, without .py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--binaries", type=Path, default=HERE.parents[1] / "target/release")
    parser.add_argument("--docs", type=Path, default=HERE.parents[1] / "docs")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    # Before any peer is imported: their pools read it once. Idle threads of one contender
    # must not spin while another one runs.
    os.environ.update({
        "OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads),
        "OPENBLAS_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "passive",
        "RAYON_NUM_THREADS": str(args.threads),
    })
    sys.path.insert(0, str(HERE))
    import harness
    import render

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    path = args.docs / "benchmarks.json"
    results = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    names = args.rows or sorted(p.stem for p in (HERE / "rows").glob("[!_]*.py"))
    for name in names:
        with tempfile.TemporaryDirectory(prefix="upcycle-peers-") as scratch:
            bench = harness.Bench(args.binaries, Path(scratch), args.threads, args.rounds)
            for row in importlib.import_module(f"rows.{name}").rows(bench):
                machine = harness.machine()
                if isinstance(row, harness.Scaling):
                    result = harness.run_scaling(row, args.rounds, say)
                else:
                    result = harness.run_row(row, args.rounds, say)
                today = datetime.date.today().isoformat()
                result.update(machine=machine, threads=args.threads, date=today)
                known = results["rows"].setdefault(row.name, {})
                known[render.processor(machine)] = result
                # After every row: what was measured is never lost to a later failure.
                results["rows"] = dict(sorted(results["rows"].items()))
                path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
                text = render.markdown(results)
                (args.docs / "benchmarks.md").write_text(text)


if __name__ == "__main__":
    main()
