// Search over all records, a group at a time so that the page goes on; filters by verdict.
const FILTERS = [["ok", "well-formed"], ["cut", "cut"], ["malformed", "malformed"], ["unread", "not readable"],
  ["right", "right"], ["wrong", "wrong"]];

class Search extends EventTarget {
  constructor(archive, index, list) {
    super();
    Object.assign(this, { archive, index, list });
    this.query = "";
    this.wanted = new Set();
    this.run = 0;
    this.input = byId("search");
    this.input.addEventListener("input", () => this.soon());
    this.names = null;
    this.chips();
  }

  is(record, filter) {
    const [, , verdict, right] = this.index[record];
    return filter === "right" ? right === true : filter === "wrong" ? right === false : verdict === filter;
  }

  chips() {
    const counts = new Map(FILTERS.map(([filter]) => [filter, 0]));
    for (let record = 0; record < this.index.length; record++)
      for (const [filter] of FILTERS) if (this.is(record, filter)) counts.set(filter, counts.get(filter) + 1);
    const told = FILTERS.filter(([filter]) => counts.get(filter) && counts.get(filter) < this.index.length);
    byId("filters").replaceChildren(...told.map(([filter, name]) => element("button", {
      class: `chip ${filter}`, "data-filter": filter, "aria-pressed": "false", onclick: (event) => {
        const on = !this.wanted.delete(filter);
        if (on) this.wanted.add(filter);
        event.currentTarget.setAttribute("aria-pressed", String(on));
        this.go();
      },
    }, name, " ", element("span", { class: "n" }, number(counts.get(filter))))));
  }

  // Filters of one kind widen, the two kinds narrow.
  passes(record) {
    const kinds = [["ok", "cut", "malformed", "unread"], ["right", "wrong"]];
    return kinds.every((kind) => {
      const on = kind.filter((filter) => this.wanted.has(filter));
      return !on.length || on.some((filter) => this.is(record, filter));
    });
  }

  soon() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.go(), 120);
  }

  clear() {
    this.input.value = "";
    this.go();
  }

  async go() {
    clearTimeout(this.waiting);
    const run = ++this.run, n = this.index.length;
    this.query = this.input.value.trim();
    const query = this.query.toLowerCase();
    if (!query) {
      const order = this.wanted.size ? [...this.index.keys()].filter((record) => this.passes(record)) : null;
      this.list.show(order);
      this.tell(this.list.length);
      this.done();
      return;
    }
    // Name, verdict, label and codes of all records are at hand.
    this.names ??= this.index.map(([name, kind, verdict, , label, , , , , codes]) =>
      [name, kind, verdict, label, ...codes].join("\n").toLowerCase());
    const found = [];
    let shown = performance.now();
    for (const [at, first] of this.archive.firsts.entries()) {
      const texts = await this.archive.texts(at);
      if (run !== this.run) return; // another search has begun
      for (const [offset, text] of texts.entries()) {
        const record = first + offset;
        if (this.passes(record) && (this.names[record].includes(query) || text.includes(query))) found.push(record);
      }
      if (performance.now() - shown > 150) {
        this.list.show(found.slice());
        this.tell(found.length, first + texts.length);
        await new Promise((go) => setTimeout(go));
        if (run !== this.run) return;
        shown = performance.now();
      }
    }
    this.list.show(found);
    this.tell(found.length);
    this.done(n);
  }

  tell(found, searched = null) {
    const n = this.index.length;
    byId("count").textContent = searched !== null ? `${number(found)} so far, in ${number(searched)} of ${number(n)}`
      : (found === n && !this.query ? counted(n, "record") : `${number(found)} of ${counted(n, "record")}`) + this.score();
  }

  // How many of the judged records that are listed are right.
  score() {
    let right = 0, judged = 0;
    for (let at = 0; at < this.list.length; at++) {
      const verdict = this.index[this.list.record(at)][3];
      judged += verdict !== null;
      right += verdict === true;
    }
    return judged ? `; ${((100 * right) / judged).toFixed(1)} % of ${number(judged)} right` : "";
  }

  done() {
    byId("count").dataset.query = this.query;
    this.dispatchEvent(new Event("done"));
  }
}
