// The open record: its head and the views of it, one at a time.
const TABS = [
  ["tree", "Tree", TreeView], ["timeline", "Timeline", TimelineView], ["mask", "Mask", MaskView],
  ["tokens", "Tokens", TokensView], ["source", "Source", SourceView], ["fields", "Fields", FieldsView],
];

class RecordView extends EventTarget {
  constructor(archive, index, theme) {
    super();
    Object.assign(this, { archive, index, theme });
    this.selection = new Selection();
    this.settings = { shade: "plain", axis: "position" };
    this.tab = "tree";
    this.opening = 0;
    this.tabs = byId("tabs");
    this.panel = byId("panel");
    this.tabs.addEventListener("keydown", (event) => this.turn(event));
    this.panel.addEventListener("repair", (event) => {
      this.show("source");
      byId(`edit-${event.detail}`)?.scrollIntoView({ block: "center" });
      byId(`edit-${event.detail}`)?.focus();
    });
    this.panel.addEventListener("keydown", (event) => this.step(event));
    this.selection.addEventListener("change", () => this.view?.mark());
    theme.addEventListener("change", () => this.view?.paint());
  }

  async open(number) {
    const opening = ++this.opening;
    const [searched, rest] = await this.archive.record(number);
    if (opening !== this.opening) return; // another one was asked for meanwhile
    this.record = new ViewedRecord(number, this.index[number], searched, rest);
    this.selection.open(this.record);
    showFacts(this.record);
    this.draw();
    this.panel.scrollTop = 0;
    this.dispatchEvent(new Event("open"));
  }

  // The views that this record has something for.
  kinds() {
    const { record } = this;
    return TABS.filter(([name]) => name === "source" ? record.source !== null || record.diagnostics.length
      : name === "fields" ? record.fields.length : record.length || (name === "tree" && record.tree.length));
  }

  draw() {
    const kinds = this.kinds();
    const open = kinds.find(([name]) => name === this.tab) ?? kinds.find(([name]) => name === "source") ?? kinds[0];
    this.tabs.replaceChildren(...kinds.map(([name, title], at) => element("button", {
      role: "tab", id: `tab-${name}`, "data-tab": name, "aria-selected": String(name === open?.[0]),
      tabindex: name === open?.[0] ? "0" : "-1", "aria-controls": "panel", title: `${title} (${at + 1})`,
      onclick: () => this.show(name),
    }, title, name === "source" && this.record.diagnostics.length
      ? element("span", { class: "n" }, number(this.record.diagnostics.length)) : null)));
    if (open) this.fill(open);
    else this.panel.replaceChildren(element("p", { class: "note" }, "There is nothing in this record."));
  }

  fill([name, , View]) {
    this.view = new View(this.record, this.selection, this.settings, this.theme);
    this.shown = name;
    this.panel.setAttribute("aria-labelledby", `tab-${name}`);
    this.panel.dataset.tab = name;
    const bar = this.view.bar();
    this.panel.replaceChildren(...(bar ? [element("div", { class: "panel-bar" }, bar)] : []), this.view.box);
    this.view.paint();
    if (this.selection.chosen >= 0) this.view.reveal(this.selection.chosen);
    this.find();
  }

  show(name) {
    if (!this.record || !this.kinds().some(([each]) => each === name)) return;
    this.tab = name;
    this.selection.hover(-1);
    this.draw();
    this.dispatchEvent(new Event("open"));
  }

  showNumber(number) {
    const kind = this.record && this.kinds()[number - 1];
    if (kind) this.show(kind[0]);
  }

  find(query = this.query ?? "") {
    this.query = query;
    this.view?.find?.(query);
  }

  turn(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const names = this.kinds().map(([name]) => name);
    this.show(names[(names.indexOf(this.shown) + moves[event.key] + names.length) % names.length]);
    byId(`tab-${this.shown}`).focus();
  }

  // Arrow keys go from token to token once one is chosen.
  step(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || this.selection.chosen < 0 || event.target.closest("input, select, canvas")) return;
    event.preventDefault();
    this.selection.choose(Math.max(0, this.selection.chosen + by));
    this.view.reveal(this.selection.chosen);
    this.tell();
  }

  // What is known of the chosen token, beside it.
  tell() {
    const { selection, view } = this, token = selection.chosen;
    const box = view.leafOf?.(token)?.range(token).getBoundingClientRect()
      ?? view.cross?.firstElementChild?.getBoundingClientRect();
    if (box) selection.show(token, box.left, box.bottom - 14, "");
  }
}
