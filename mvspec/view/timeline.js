// Threads over positions, forwards or seconds, to scale.
const TALL = 24;
const THREAD_LIMIT = 400;

class TimelineView {
  constructor(record, selection, settings) {
    Object.assign(this, { record, selection, settings });
    this.kinds = Axis.kinds(record);
    this.labels = element("div", { class: "labels" });
    this.plot = element("div", { class: "plot" });
    this.note = element("p", { class: "note" });
    this.frame = element("div", { class: "timeline" }, this.labels, this.plot);
    this.box = element("div", { class: "chart" }, this.frame, this.note);
    this.zoom = 1;
    this.order = this.depthFirst();
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => selection.hover(-1));
    this.plot.addEventListener("click", () => selection.hovered >= 0 && selection.choose(selection.hovered));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  bar() {
    const axis = element("div", { class: "segments", role: "group", "aria-label": "Axis" },
      ...this.kinds.map((kind) => element("button", {
        "data-axis": kind, "aria-pressed": String(kind === this.kind), onclick: () => this.turn(kind),
      }, AXES[kind])));
    const wider = element("div", { class: "segments", role: "group", "aria-label": "Scale" },
      element("button", { "aria-label": "Narrower", onclick: () => this.scale(0.5) }, "−"),
      element("button", { "aria-label": "Wider", onclick: () => this.scale(2) }, "+"));
    this.switch = axis;
    return element("div", { class: "bars" }, this.kinds.length > 1 ? axis : null, wider);
  }

  get kind() {
    return this.kinds.includes(this.settings.axis) ? this.settings.axis : "position";
  }

  turn(kind) {
    this.settings.axis = kind;
    for (const button of this.switch.children)
      button.setAttribute("aria-pressed", String(button.dataset.axis === kind));
    this.draw();
  }

  scale(by) {
    this.zoom = Math.max(1, Math.min(64, this.zoom * by));
    this.draw();
  }

  // Paths below their parent; where there are too many, the outermost.
  depthFirst() {
    const { threads } = this.record;
    const below = Map.groupBy(threads.keys(), (each) => threads[each][2]);
    const out = [], stack = [[0, 0]];
    while (stack.length) {
      const [thread, depth] = stack.pop();
      out.push([thread, depth]);
      const paths = below.get(thread) ?? [];
      for (let at = paths.length - 1; at >= 0; at--) stack.push([paths[at], depth + 1]);
    }
    if (out.length <= THREAD_LIMIT) return out;
    const kept = new Set([...out].sort((a, b) => a[1] - b[1]).slice(0, THREAD_LIMIT));
    return out.filter((row) => kept.has(row));
  }

  draw() {
    const { record } = this, room = this.plot.clientWidth;
    if (!room || !record.length) return;
    this.axis = new Axis(record, this.kind);
    const width = (room - 16) * this.zoom;
    this.unit = width / this.axis.end;
    const x = (value) => 8 + value * this.unit, height = TALL * this.order.length;
    const svg = drawn("svg", { width: width + 16, height: height + 30, role: "img", "aria-label": this.summary() });
    const [ticks, digits] = this.axis.ticks(Math.min(width / 70, 400));
    for (const tick of ticks) {
      svg.append(drawn("path", { class: "grid", d: `M${x(tick)} 0V${height + 5}` }),
        drawn("text", { class: "tick", x: x(tick), y: height + 20 }, number(tick, digits)));
    }
    this.rows = new Map();
    const extents = this.extents();
    for (const [at, [thread]] of this.order.entries()) {
      this.rows.set(thread, at);
      const middle = TALL * at + TALL / 2, [from, to] = extents[thread];
      const colour = record.colour(thread);
      if (to > from) svg.append(drawn("path", { class: "wait", d: `M${x(from)} ${middle}H${x(to)}` }));
      for (const [author, start, stop] of this.axis.bars(thread)) {
        const wide = Math.max(this.kind === "position" ? 0.5 : 2, (stop - start) * this.unit);
        svg.append(drawn("rect", { class: AUTHORS[author], x: x(start), y: middle - 7, width: wide, height: 14,
          rx: Math.min(2, wide / 3), vars: { "--c": author ? colour : "var(--faint)" } }));
      }
    }
    for (const [above, below, at] of this.links(extents))
      svg.append(drawn("path", { class: "link", d: `M${x(at)} ${TALL * above + TALL / 2}V${TALL * below + TALL / 2}` }));
    this.cross = drawn("g", { class: "cross" });
    svg.append(this.cross);
    this.plot.replaceChildren(svg);
    this.name();
    this.mark();
  }

  name() {
    const rows = this.order.map(([thread, depth]) => {
      const [label, title] = this.record.threads[thread];
      return element("div", { class: "label", vars: { "--depth": Math.min(depth, 6), "--c": this.record.colour(thread) },
        title: visibleLine(title) },
        element("b", {}, thread ? quoted(label || "path") : "root"), " ", quoted(title));
    });
    this.labels.replaceChildren(...rows);
    const left = this.record.threads.length - this.order.length;
    this.note.textContent = [
      this.record.unit === "words" ? "Counted in words; a tag is one. Give --tokenizer for tokens." : "",
      this.kind === "position" ? "" : "Forced tokens come out of no forward: they are marks at the end of the one before.",
      left ? `${number(left)} more threads are not drawn.` : "",
    ].filter(Boolean).join(" ");
  }

  summary() {
    const { record } = this;
    return `${counted(record.threads.length, "thread")} over ${AXES[this.kind].toLowerCase()} 0 to ` +
      `${number(this.axis.end, this.kind === "second" ? 2 : 0)}, critical path ${number(record.critical)}`;
  }

  // Of each thread where its own tokens and its paths' begin and end.
  extents() {
    const { record } = this;
    const out = record.threads.map((_, thread) => {
      const extent = [Infinity, -Infinity];
      for (const [, start, stop] of this.axis.bars(thread)) {
        extent[0] = Math.min(extent[0], start);
        extent[1] = Math.max(extent[1], stop);
      }
      return extent;
    });
    for (let thread = out.length - 1; thread > 0; thread--) {
      const above = out[record.threads[thread][2]];
      above[0] = Math.min(above[0], out[thread][0]);
      above[1] = Math.max(above[1], out[thread][1]);
    }
    return out;
  }

  // Every fork and join: the parent's row, the last path's row, where.
  *links(extents) {
    const { threads } = this.record;
    const blocks = Map.groupBy([...threads.keys()].slice(1), (thread) => threads[thread][3]);
    for (const paths of blocks.values()) {
      const rows = paths.map((path) => this.rows.get(path)).filter((row) => row !== undefined);
      const above = this.rows.get(threads[paths[0]][2]);
      const there = paths.filter((path) => extents[path][1] >= extents[path][0]);
      if (!rows.length || !there.length || above === undefined) continue;
      const below = Math.max(...rows);
      yield [above, below, Math.min(...there.map((path) => extents[path][0]))];
      yield [above, below, Math.max(...there.map((path) => extents[path][1]))];
    }
  }

  tokenAt(x, y) {
    const box = this.plot.firstElementChild.getBoundingClientRect();
    const row = this.order[Math.floor((y - box.top) / TALL)];
    if (!row) return -1;
    const value = (x - box.left - 8) / this.unit, near = 3 / this.unit;
    let best = -1, distance = near;
    for (const [, start, stop, first, last] of this.axis.bars(row[0])) {
      if (value < start - near || value > stop + near) continue;
      let low = first, high = last - 1;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.axis.token(middle)[1] > value) high = middle; else low = middle + 1;
      }
      const [a, b] = this.axis.token(low);
      const away = Math.max(0, a - value, value - b);
      if (away < distance) [best, distance] = [low, away];
    }
    return best;
  }

  point(event) {
    if (this.axis) this.selection.hover(this.tokenAt(event.clientX, event.clientY), event.clientX, event.clientY);
  }

  mark() {
    const { token } = this.selection;
    this.cross?.replaceChildren();
    if (token < 0 || !this.axis) return;
    const row = this.rows.get(this.record.owner[token]);
    if (row === undefined) return;
    const [start, stop] = this.axis.token(token);
    this.cross.append(drawn("rect", { x: 8 + start * this.unit - 1, y: TALL * row + 2,
      width: Math.max(3, (stop - start) * this.unit + 2), height: TALL - 4, rx: 2 }));
  }

  paint() {
    this.draw();
  }

  reveal() {
    this.cross?.firstElementChild?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}
