// The text as it stands in the record, with every repair in its place and why.
const SOURCE_LIMIT = 400_000;
const PROBLEM_LIMIT = 500;

class SourceView {
  constructor(record) {
    this.record = record;
    this.text = record.source ?? record.text;
    this.limit = SOURCE_LIMIT;
    this.box = element("div", { class: "source" });
    this.draw();
  }

  bar() {
    return null;
  }

  // Offsets of diagnostics count characters; this page counts UTF-16 units.
  unit(offset) {
    if (!this.wide) {
      this.wide = [];
      for (let at = 0, count = 0; at < this.text.length; at++, count++)
        if (this.text.codePointAt(at) > 0xffff) {
          this.wide.push(count);
          at++;
        }
    }
    let before = 0;
    while (before < this.wide.length && this.wide[before] < offset) before++;
    return offset + before;
  }

  draw() {
    const found = this.record.diagnostics.slice(0, PROBLEM_LIMIT);
    const parts = [];
    let at = 0;
    for (const [index, each] of found.entries()) {
      const start = Math.min(this.unit(each.offset), this.text.length);
      const stop = Math.max(start, Math.min(this.unit(each.end), this.text.length));
      if (start < at || start > this.limit) continue;
      parts.push(visible(this.text.slice(at, start)));
      parts.push(element("span", { class: `edit ${each.severity ?? "error"}`, id: `edit-${index}`, tabindex: "-1" },
        element("a", { class: "number", href: `#problem-${index}`, title: each.message,
          "aria-label": `Problem ${index + 1}: ${each.code}`, onclick: (event) => this.go(event, `problem-${index}`) }, String(index + 1)),
        stop > start && each.dropped ? element("del", {}, visible(this.text.slice(start, stop))) : null,
        each.inserted ? element("ins", {}, visibleLine(each.inserted)) : null));
      at = each.dropped ? stop : start;
    }
    const end = Math.min(this.text.length, Math.max(at, this.limit));
    parts.push(visible(this.text.slice(at, end)));
    const rest = this.text.length - end;
    const problems = found.map((each, index) => element("li", { id: `problem-${index}`, tabindex: "-1" },
      element("a", { href: `#edit-${index}`, class: "place", onclick: (event) => this.go(event, `edit-${index}`) },
        `${each.line}:${each.column}`),
      element("code", {}, quoted(each.code)), " ", quoted(each.message)));
    const left = this.record.diagnostics.length - found.length;
    this.box.replaceChildren(
      ...(problems.length ? [element("section", { class: "problems", "aria-label": "Diagnostics" },
        element("h3", {}, counted(this.record.diagnostics.length, "diagnostic")), element("ol", {}, ...problems),
        left ? element("p", { class: "note" }, `${number(left)} more are not shown.`) : null)] : []),
      element("div", { class: "raw t", dir: "auto" }, ...parts),
      ...(rest ? [element("button", { class: "more", onclick: () => {
        this.limit = Infinity;
        this.draw();
      } }, `… ${number(rest)} more characters`)] : []));
  }

  go(event, id) {
    event.preventDefault();
    byId(id)?.focus();
    byId(id)?.scrollIntoView({ block: "center" });
  }

  mark() {}

  paint() {}

  reveal() {}
}
