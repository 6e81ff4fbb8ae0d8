"""The tables of `docs/benchmarks.md` from `docs/benchmarks.json`."""


def seconds(value: float) -> str:
    if value >= 10:
        return f"{value:.1f} s"
    if value >= 0.1:
        return f"{value:.2f} s"
    return f"{1e3 * value:.1f} ms"


def span(times: dict) -> str:
    return f"{seconds(times['median'])} ({seconds(times['min'])} to {seconds(times['max'])})"


def extras(values: dict) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in values.items())


def markdown(results: dict) -> str:
    out = [
        "# Benchmarks",
        "",
        "Written by `make bench-peers`; do not edit.",
        "Each row runs all contenders in turns in one run, on the same data and threads.",
        "Every row keeps one table for each processor that it ran on.",
        "Times are medians with the smallest and the largest; a ratio is the median over rounds of the peer's time by the contender's, so above 1 is faster than the peer.",
        "`docs/benchmarks.json` holds the same figures.",
        "",
    ]
    for processors in results["rows"].values():
        # What a row measures may have been said better since an older processor ran it.
        newest = max(processors.values(), key=lambda row: row.get("date", ""))
        out += [f"## {newest['title']}", "", newest["note"], ""]
        for row in processors.values():
            if row["note"] != newest["note"]:
                out += ["Measured earlier and otherwise:", row["note"], ""]
            out += [taken_on(row), ""]
            out += table(row) if row["kind"] == "row" else scaling(row)
            out.append("")
    return "\n".join(out).rstrip() + "\n"


def processor(machine: dict) -> str:
    """What tells one machine's figures from another's."""
    vectors = f", {machine['vectors'][0].upper()}" if machine["vectors"] else ""
    return f"{machine['cores']} cores of {machine['processor']}{vectors}"


def taken_on(row: dict) -> str:
    machine = row["machine"]
    date = f", {row['date']}" if "date" in row else ""
    return (
        f"{row['rounds']} rounds, {row['threads']} threads on {processor(machine)}{date}; "
        f"load before the row: {machine['load_before']:.1f}."
    )


def table(row: dict) -> list[str]:
    quality = row["quality"] or "quality"
    out = [f"| | time | {quality} | ratio | target | more |", "|---|---|---|---|---|---|"]
    for line in row["lines"]:
        figure = "-" if line["quality"] is None else f"{line['quality']:.6g}"
        ratio = "1" if line["contender"] == row["peer"] else f"**{line['ratio']:.2f}**"
        target = "-" if line["target"] is None else f"≥ {line['target']:g}"
        out.append(
            f"| {line['contender']} | {span(line['seconds'])} | {figure} | {ratio} | {target} "
            f"| {extras(line['extra'])} |"
        )
    return out


def scaling(row: dict) -> list[str]:
    out = ["| | time | by size, first = 1 | more |", "|---|---|---|---|"]
    first = row["lines"][0]
    for line in row["lines"]:
        share = line["seconds"]["median"] / first["seconds"]["median"]
        relative = share / (line["size"] / first["size"])
        out.append(
            f"| {line['label']} | {span(line['seconds'])} | {relative:.2f} "
            f"| {extras(line['extra'])} |"
        )
    return out
