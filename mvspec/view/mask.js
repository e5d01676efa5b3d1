// Who sees whom, drawn from the law's intervals: a stripe for each run of keys, a box for each
// stretch of tokens and interval that is hidden from it. Nothing of size n x n is made.
const SIDE = 720;

function soft(colour) {
  return `color-mix(in oklab, ${colour} 72%, var(--paper))`;
}

class MaskView {
  constructor(record, selection, settings, theme) {
    Object.assign(this, { record, selection, settings, theme });
    this.canvas = element("canvas", { role: "img", tabindex: "0", "aria-describedby": "mask-says" });
    this.over = element("canvas", { class: "over", "aria-hidden": "true" });
    this.says = element("p", { id: "mask-says", class: "says", "aria-live": "polite" });
    this.stage = element("div", { class: "stage" }, this.canvas, this.over);
    this.box = element("div", { class: "mask" },
      element("p", { class: "axis-name" }, "keys: the tokens that may be seen \u2192"),
      this.stage,
      element("div", { class: "legend" }, this.legend(), this.says,
        element("p", { class: "note" }, "Rows are queries, from top to bottom. With the pointer or the arrow keys: what sees what."),
        record.unit === "words" ? element("p", { class: "note" }, "Counted in words; a tag is one.") : null));
    this.query = this.key = 0;
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => selection.hover(-1));
    this.canvas.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.draw()).observe(this.stage);
  }

  bar() {
    return null;
  }

  legend() {
    const { record } = this;
    const items = [[soft("var(--root)"), "sees text outside of paths"]];
    for (const [thread, [label, title]] of record.threads.entries())
      if (thread && items.length < 10) items.push([soft(record.colour(thread)), `sees path ${visibleLine(label)} ${visibleLine(title)}`]);
    if (record.threads.length > 10) items.push([null, `and ${number(record.threads.length - 10)} more paths`]);
    items.push(["var(--hide)", "hidden: in another path"]);
    items.push(["var(--paper)", "still to come"]);
    return element("ul", {}, ...items.map(([colour, text]) => element("li", {},
      colour ? element("i", { vars: { "--c": colour } }) : null, element("bdi", {}, text))));
  }

  draw() {
    const { record } = this, n = record.length;
    const tall = (this.box.parentElement?.clientHeight ?? SIDE) - 60;
    const side = Math.min(SIDE, this.stage.clientWidth, Math.max(260, tall));
    if (!n || !side) return;
    const dots = Math.round(side * Math.min(2, devicePixelRatio || 1));
    for (const canvas of [this.canvas, this.over]) {
      canvas.width = canvas.height = dots;
      canvas.style.width = canvas.style.height = `${side}px`;
    }
    this.side = side;
    const pen = this.canvas.getContext("2d"), unit = dots / n;
    const box = (colour, k0, k1, q0, q1) => {
      // Whole pixels, so that no seam shows between boxes of one colour.
      const [left, top] = [Math.round(k0 * unit), Math.round(q0 * unit)];
      pen.fillStyle = colour;
      pen.fillRect(left, top, Math.round(k1 * unit) - left, Math.round(q1 * unit) - top);
    };
    const colours = record.threads.map((_, thread) => this.theme.colour(soft(record.colour(thread))));
    const hide = this.theme.colour("var(--hide)"), page = this.theme.colour("var(--paper)");
    for (const span of record.spans) box(colours[span.thread], span.start, span.stop, span.start, n);
    for (const span of record.spans) {
      const hidden = record.hidden[span.thread];
      for (let at = 0; at < hidden.length; at += 2) box(hide, hidden[at], hidden[at + 1], span.start, span.stop);
    }
    // What is still to come lies above the diagonal; where tokens are wide, it goes in steps.
    pen.fillStyle = page;
    pen.beginPath();
    pen.moveTo(0, 0);
    const steps = Math.min(n, dots);
    for (let step = 0; step < steps; step++) {
      const at = Math.floor((step * n) / steps);
      pen.lineTo((at + 1) * unit, at * unit);
      pen.lineTo((at + 1) * unit, Math.floor(((step + 1) * n) / steps) * unit);
    }
    pen.lineTo(dots, 0);
    pen.fill();
    this.canvas.setAttribute("aria-label", `Visibility of ${counted(n, record.unit.slice(0, -1))} in ${counted(record.threads.length, "thread")}`);
    this.mark();
  }

  cell(event) {
    const box = this.canvas.getBoundingClientRect(), n = this.record.length;
    const at = (value, start, size) => Math.max(0, Math.min(n - 1, Math.floor(((value - start) / size) * n)));
    return [at(event.clientY, box.top, box.height), at(event.clientX, box.left, box.width)];
  }

  point(event) {
    [this.query, this.key] = this.cell(event);
    this.selection.hover(this.key, event.clientX, event.clientY, this.verdict());
    this.mark();
  }

  step(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    const far = event.shiftKey ? Math.max(1, Math.round(this.record.length / 20)) : 1;
    const inside = (value) => Math.max(0, Math.min(this.record.length - 1, value));
    this.query = inside(this.query + move[0] * far);
    this.key = inside(this.key + move[1] * far);
    this.mark();
  }

  verdict() {
    const { record, query, key } = this;
    const name = (i) => `${number(i)} \u201c${visibleLine(record.token(i))}\u201d (position ${number(record.position[i])}, ${record.owner[i] ? "path " : ""}${record.path(record.owner[i])})`;
    const blind = record.blind(query, key);
    return `${name(query)} ${blind ? `does not see ${name(key)}: ${blind}` : `sees ${name(key)}`}`;
  }

  mark() {
    if (!this.side || !this.record.length) return;
    const pen = this.over.getContext("2d"), dots = this.over.width, unit = dots / this.record.length;
    pen.clearRect(0, 0, dots, dots);
    pen.strokeStyle = this.theme.colour("var(--ink)");
    const x = (this.key + 0.5) * unit, y = (this.query + 0.5) * unit;
    pen.beginPath();
    pen.moveTo(0, y);
    pen.lineTo(dots, y);
    pen.moveTo(x, 0);
    pen.lineTo(x, dots);
    pen.stroke();
    this.says.replaceChildren(element("bdi", {}, this.verdict()));
  }

  paint() {
    this.draw();
  }

  reveal(token) {
    this.query = token;
    this.mark();
  }
}
