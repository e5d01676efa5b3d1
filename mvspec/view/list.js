// The list of records, of any length.
const ITEM = 74;

class RecordList extends EventTarget {
  constructor(index) {
    super();
    this.index = index;
    this.order = null; // numbers of the records that are shown; null for all
    this.chosen = -1;
    this.frame = byId("list");
    byId("rows").remove();
    this.rows = new Rows(this.frame, ITEM, (at) => this.item(at));
    this.frame.addEventListener("click", (event) => {
      const item = event.target.closest("[role=option]");
      if (item) this.choose(Number(item.dataset.record));
    });
    this.frame.addEventListener("keydown", (event) => this.step(event));
  }

  get length() {
    return this.order ? this.order.length : this.index.length;
  }

  record(at) {
    return this.order ? this.order[at] : at;
  }

  // Where a record stands in the list; -1 where it is filtered out.
  place(record) {
    return this.order ? this.order.indexOf(record) : record;
  }

  show(order) {
    this.order = order;
    this.rows.reset(this.length);
    this.pointer();
  }

  item(at) {
    const record = this.record(at);
    const [name, , verdict, right, label, lead, tokens, parallelism, blocks] = this.index[record];
    const numbers = tokens ? [`${number(tokens)}`, `×${degree(parallelism)}`, blocks ? counted(blocks, "block") : ""] : [];
    return element("div", { role: "option", id: `record-${record}`, class: "item", "data-record": record,
      "aria-selected": String(record === this.chosen), "aria-setsize": this.length, "aria-posinset": at + 1 },
      element("div", { class: "first" }, quoted(name, { class: "name" }), verdict === "ok" || !verdict ? null : badge(verdict), judged(right)),
      element("div", { class: "lead" }, quoted(lead)),
      element("div", { class: "last" }, ...[label, ...numbers].filter(Boolean).map((text) => quoted(text))));
  }

  choose(record, quiet = false) {
    if (record < 0 || record >= this.index.length) return;
    const before = this.chosen;
    this.chosen = record;
    for (const each of [before, record])
      this.rows.shown.get(this.place(each))?.setAttribute("aria-selected", String(each === record));
    const at = this.place(record);
    if (at >= 0) this.rows.reveal(at);
    this.pointer();
    if (!quiet) this.dispatchEvent(new Event("choose"));
  }

  pointer() {
    const at = this.place(this.chosen);
    if (at >= 0 && this.rows.shown.has(at)) this.frame.setAttribute("aria-activedescendant", `record-${this.chosen}`);
    else this.frame.removeAttribute("aria-activedescendant");
  }

  move(by) {
    if (!this.length) return;
    const at = this.place(this.chosen);
    // From a record that is filtered out, the next one is the first that comes after it.
    const from = at >= 0 ? at + by
      : by > 0 ? this.order.findIndex((each) => each > this.chosen)
      : this.order.findLastIndex((each) => each < this.chosen);
    this.choose(this.record(Math.max(0, Math.min(this.length - 1, from < 0 && at < 0 ? this.length - 1 : from))));
  }

  step(event) {
    const page = Math.max(1, Math.floor(this.frame.clientHeight / ITEM) - 1);
    const moves = { ArrowUp: -1, ArrowDown: 1, PageUp: -page, PageDown: page, Home: -this.length, End: this.length };
    if (!(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation();
    this.move(moves[event.key]);
  }
}
