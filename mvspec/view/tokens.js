// Every token in a row; only the rows in view are in the page.
const ROW = 26;

class TokensView {
  constructor(record, selection) {
    Object.assign(this, { record, selection });
    this.columns = [record.unit.slice(0, -1), "text", "position", "thread", "written"];
    if (record.logprobs) this.columns.push("logprob");
    if (record.ids) this.columns.push("id");
    if (record.steps) this.columns.push("forward");
    this.frame = element("div", { class: "scroller", tabindex: "0", role: "rowgroup", "aria-label": "Tokens" });
    this.box = element("div", { class: "tokens", role: "table", "aria-rowcount": record.length + 1,
      vars: { "--columns": this.columns.map((name) => (name === "text" || name === "thread" ? "minmax(6em, 2fr)" : "minmax(4em, 1fr)")).join(" ") } },
      element("div", { class: "row names", role: "row" },
        ...this.columns.map((name) => element("span", { role: "columnheader", class: this.kind(name) }, name))),
      this.frame);
    this.rows = new Rows(this.frame, ROW, (at) => this.row(at));
    this.rows.reset(record.length);
    this.frame.addEventListener("keydown", (event) => this.step(event));
  }

  bar() {
    return null;
  }

  kind(name) {
    return name === "text" ? "piece" : ["thread", "written"].includes(name) ? "" : "figure";
  }

  cells(i) {
    const { record } = this, thread = record.owner[i];
    const logprob = record.logprobs?.[i];
    const title = record.threads[thread][1];
    const values = {
      text: record.token(i), position: number(record.position[i]),
      thread: record.path(thread) + (title ? ` ${title}` : ""), written: WRITERS[record.author[i]],
      logprob: logprob === null || logprob === undefined ? "" : logprob.toFixed(3),
      id: String(record.ids?.[i]), forward: record.steps?.[i] >= 0 ? number(record.steps[i]) : "",
      [this.columns[0]]: number(i),
    };
    return this.columns.map((name) => [name, values[name]]);
  }

  row(i) {
    const { record } = this;
    return element("div", { class: `row${i === this.selection.token ? " here" : ""}`, role: "row", "aria-rowindex": i + 2,
      vars: { "--c": record.colour(record.owner[i]) }, onclick: () => this.selection.choose(i) },
      ...this.cells(i).map(([name, value]) => element("span", { role: "cell", class: this.kind(name) }, quoted(value))));
  }

  step(event) {
    const page = Math.max(1, Math.floor(this.frame.clientHeight / ROW) - 1);
    const moves = { ArrowUp: -1, ArrowDown: 1, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity };
    if (!(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation();
    const at = Math.max(0, Math.min(this.record.length - 1, Math.max(0, this.selection.token) + moves[event.key]));
    this.selection.choose(at);
    this.reveal(at);
  }

  mark() {
    for (const [at, row] of this.rows.shown) row.classList.toggle("here", at === this.selection.token);
  }

  paint() {
    this.rows.draw();
  }

  reveal(token) {
    this.rows.reveal(token);
  }
}
