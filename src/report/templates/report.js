// Tables: a click on a heading sorts, buttons copy as Markdown, CSV or LaTeX.
const text = (cell) => {
  const small = cell.querySelector("small");
  const main = [...cell.childNodes].filter((n) => n !== small).map((n) => n.textContent).join("").trim();
  return small ? `${main} (${small.textContent.trim()})` : main;
};
const rows = (table) => [...table.rows].map((row) => [...row.cells].map(text));
const plain = (value) => value.replace(/\u2212/g, "-");
const quoted = (value) => /[",\n]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value;
const tex = (value) => value.replace(/[\\{}$&#^_%~]/g, (c) => c === "\\" ? "\\textbackslash{}" : "^~".includes(c) ? `\\${c}{}` : `\\${c}`)
  .replace(/\u2212/g, "$-$").replace(/\u00b1/g, "$\\pm$").replace(/\u2192/g, "$\\to$").replace(/\u2013/g, "--").replace(/\u2026/g, "\\dots{}");
const kinds = {
  Markdown: (table) => rows(table).map((r, i) => `| ${r.map((v) => v.replace(/\|/g, "\\|")).join(" | ")} |${i ? "" : `\n|${r.map(() => "---|").join("")}`}`).join("\n"),
  CSV: (table) => rows(table).map((r) => r.map((v) => quoted(plain(v))).join(",")).join("\n"),
  LaTeX: (table) => `\\begin{tabular}{${[...table.rows[0].cells].map((c) => c.className.startsWith("w") ? "l" : "r").join("")}}\n\\toprule\n${rows(table).map((r, i) => `${r.map(tex).join(" & ")} \\\\${i ? "" : "\n\\midrule"}`).join("\n")}\n\\bottomrule\n\\end{tabular}`,
};
const copy = async (value) => {
  try { await navigator.clipboard.writeText(value); } catch {
    const area = Object.assign(document.createElement("textarea"), { value });
    document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
  }
};
const number = (value) => parseFloat(plain(value).replace(/,/g, ""));
const compare = (a, b) => {
  const [x, y] = [number(a), number(b)];
  const [noX, noY] = [!isFinite(x), !isFinite(y)];
  return noX || noY ? noX - noY || a.localeCompare(b) : x - y;
};
const button = (label, title, act) => {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: label, title });
  made.addEventListener("click", async () => { await act(); made.classList.add("done"); setTimeout(() => made.classList.remove("done"), 900); });
  return made;
};
for (const table of document.querySelectorAll("div.table table")) {
  const bar = Object.assign(document.createElement("div"), { className: "copy" });
  for (const [kind, make] of Object.entries(kinds)) bar.append(button(kind, `Copy the table as ${kind}`, () => copy(make(table))));
  table.parentElement.after(bar);
  const body = table.tBodies[0], original = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    let state = 0;
    const sort = () => {
      state = (state + 1) % 3;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      const order = [...original];
      if (state) {
        const sign = state === 1 ? -1 : 1;
        head.setAttribute("aria-sort", state === 1 ? "descending" : "ascending");
        order.sort((a, b) => sign * compare(text(a.cells[column]), text(b.cells[column])));
      }
      body.append(...order);
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (e) => { if (e.key === "Enter") sort(); });
  });
}
for (const code of document.querySelectorAll("pre.command")) code.append(button("Copy", "Copy the command", () => copy(code.firstChild.textContent)));
