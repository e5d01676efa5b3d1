// The token that the pointer or the keys are at; every view of a record shows the same one.
class Selection extends EventTarget {
  constructor() {
    super();
    this.record = null;
    this.hovered = -1;
    this.chosen = -1;
    this.box = byId("inspector");
  }

  open(record) {
    this.record = record;
    this.hovered = this.chosen = -1;
    this.hide();
  }

  get token() {
    return this.hovered >= 0 ? this.hovered : this.chosen;
  }

  hover(token, x, y, note = "") {
    if (token < 0) {
      if (this.hovered >= 0 || !this.box.hidden) this.leave();
      return;
    }
    const moved = token !== this.hovered;
    this.hovered = token;
    this.show(token, x, y, note);
    if (moved) this.dispatchEvent(new Event("change"));
  }

  leave() {
    this.hovered = -1;
    this.hide();
    this.dispatchEvent(new Event("change"));
  }

  choose(token) {
    this.chosen = Math.max(-1, Math.min(token, this.record.length - 1));
    this.dispatchEvent(new Event("change"));
  }

  // What is known of a token, as pairs of name and value.
  facts(i) {
    const record = this.record, thread = record.owner[i];
    const title = record.threads[thread][1];
    const out = [
      [record.unit === "words" ? "word" : "token", number(i)],
      ["position", number(record.position[i])],
      ["thread", record.path(thread) + (title ? ` ${visibleLine(title)}` : "")],
      ["written", WRITERS[record.author[i]]],
    ];
    const logprob = record.logprobs?.[i];
    if (logprob !== null && logprob !== undefined)
      out.push(["logprob", `${logprob.toFixed(3)} (${(100 * Math.exp(logprob)).toFixed(1)} %)`]);
    if (record.ids) out.push(["id", String(record.ids[i])]);
    if (record.steps && record.steps[i] >= 0) {
      const step = record.steps[i];
      out.push(["forward", `${number(step)}, at ${record.ends[step].toFixed(3)} s`]);
    }
    return out;
  }

  show(i, x, y, note) {
    const rows = this.facts(i).flatMap(([name, value]) => [
      element("dt", {}, name), element("dd", {}, element("bdi", {}, value)),
    ]);
    const text = this.record.token(i);
    this.box.replaceChildren(
      element("code", { class: "piece" }, quoted(text.length > 200 ? `${text.slice(0, 200)}…` : text)),
      element("dl", {}, ...rows),
      ...(note ? [element("p", {}, note)] : []),
    );
    this.box.hidden = false;
    const { width, height } = this.box.getBoundingClientRect();
    const left = Math.min(x + 14, innerWidth - width - 8);
    const above = y + 22 + height > innerHeight - 8;
    this.box.style.left = `${Math.max(8, left)}px`;
    this.box.style.top = `${Math.max(8, above ? y - height - 14 : y + 22)}px`;
  }

  hide() {
    this.box.hidden = true;
  }
}
