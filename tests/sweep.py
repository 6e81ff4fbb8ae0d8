#!/usr/bin/env python3
"""Damages every file of every kind of result in every way, and counts what is noticed.

    make PROFILE=smoke ARTIFACTS=/tmp/smoke && tests/sweep.py /tmp/smoke [BIN]

For one result a stage and each of its files: the damage is done, `verify` must name the file,
`--check` must call the stage stale, and the next run must make the same bytes again and keep
the damaged ones aside. docs/reliability.md has the table that this prints.
"""

import collections
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

ROOT = pathlib.Path(sys.argv[1]).resolve()
BIN = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "target/release").resolve()
WHERE = ["--profile", "smoke", "--artifacts", str(ROOT)]
STAGES = "dataset pretrain activations cluster subspaces upcycle train evaluate analyze report"
random.seed(1)


def run(program, *arguments):
    command = [BIN / f"upcycle-{program}", *arguments, *WHERE]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def writable(path):
    path.chmod(0o644)


def append(path):
    writable(path)
    with path.open("ab") as file:
        file.write(b"\0")


def truncate(path):
    writable(path)
    os.truncate(path, random.randrange(path.stat().st_size))


def flip(path):
    writable(path)
    with path.open("r+b") as file:
        at = random.randrange(path.stat().st_size)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ (1 << random.randrange(8))]))


def flip_keeping_times(path):
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def empty(path):
    writable(path)
    os.truncate(path, 0)


def replace_same_size(path):
    size, before = path.stat().st_size, path.stat()
    path.unlink()
    path.write_bytes(bytes(size))
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_link(path):
    copy = ROOT / "copy"
    shutil.copy(path, copy)
    path.unlink()
    path.symlink_to(copy)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def delete(path):
    path.unlink()


def add(path):
    (path.parent / "stray.bin").write_bytes(b"x")


DAMAGES = [append, truncate, flip, flip_keeping_times, empty, replace_same_size,
           replace_by_link, replace_by_folder, delete, add]


def tree(folder):
    return json.loads((folder / "manifest.json").read_text())["tree"]


def sweep():
    kinds = collections.defaultdict(lambda: [0, 0, 0, 0])
    for stage in STAGES.split():
        links = sorted((ROOT / stage).glob("**/current"))
        link = links[len(links) // 2]
        folder = link.resolve()
        name = str(link.parent.relative_to(ROOT / stage))
        only = [] if name == "." else ["--only", name]
        good = tree(folder)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            for damage in DAMAGES:
                kind = "manifest" if path.name == "manifest.json" else path.suffix[1:]
                count = kinds[(stage, kind)]
                damage(path)
                blamed = "stray.bin" if damage is add else path.name
                verify, check = run("inspect", "verify"), run(stage, "--check", *only)
                named = blamed in verify.stdout + verify.stderr
                count[0] += 1
                count[1] += verify.returncode == 4 and named
                count[2] += check.returncode == 1
                made = run(stage, "--quiet", *only)
                again = run(stage, "--check", *only)
                kept = (ROOT / ".corrupt").is_dir() and any((ROOT / ".corrupt").iterdir())
                healed = made.returncode == 0 and again.returncode == 0
                healed = healed and kept and tree(link.resolve()) == good
                count[3] += healed
                if count[0] != count[1] or count[0] != count[3] or count[0] != count[2]:
                    print(f"LOST {stage} {path.name} {damage.__name__}: verify "
                          f"{verify.returncode} {named}, check {check.returncode}, "
                          f"run {made.returncode} {made.stderr[:300]}", file=sys.stderr)
                    return kinds
                shutil.rmtree(ROOT / ".corrupt")
    return kinds


def main():
    clean = run("inspect", "verify", "--deep")
    assert clean.returncode == 0, clean.stdout + clean.stderr
    kinds = sweep()
    print("| stage | kind | tried | named by verify | stale | made again |")
    print("|---|---|---|---|---|---|")
    for (stage, kind), counts in kinds.items():
        print("|", " | ".join([stage, kind, *map(str, counts)]), "|")
    total = [sum(column) for column in zip(*kinds.values())]
    print("| all | |", " | ".join(map(str, total)), "|")
    sys.exit(0 if len(set(total)) == 1 else 1)


main()
