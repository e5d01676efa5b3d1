// The tree of a record: paths side by side, each text one text node, tokens found by place.
const LEAF_LIMIT = 20_000;
const CHILD_LIMIT = 100;
const SHADED_LIMIT = 60_000;

class Leaf {
  constructor(view, start, stop) {
    this.view = view;
    this.start = start;
    this.stop = stop;
    this.node = document.createTextNode("");
    this.box = element("div", { class: "t", dir: "auto" }, this.node);
    this.fill(Math.min(stop, start + LEAF_LIMIT));
  }

  // Write the characters up to `end`, and remember where each token ends in what is shown.
  fill(end) {
    const { record, leaves } = this.view;
    [this.first, this.last] = record.touched(this.start, end);
    this.ends = new Uint32Array(this.last - this.first);
    let shown = "";
    for (let i = this.first; i < this.last; i++) {
      const from = Math.max(this.start, record.starts[i]), to = Math.min(end, record.starts[i + 1]);
      if (to > from) shown += visible(record.text.slice(from, to));
      this.ends[i - this.first] = shown.length;
    }
    this.node.data = shown;
    leaves.set(this.node, this);
    if (end < this.stop)
      this.box.append(element("button", { class: "more", onclick: (event) => this.all(event) },
        `… ${number(this.stop - end)} more characters`));
  }

  all(event) {
    event.currentTarget.remove();
    this.fill(this.stop);
    this.view.paint();
  }

  span(i) {
    const at = i - this.first;
    return [at ? this.ends[at - 1] : 0, this.ends[at]];
  }

  range(i) {
    const [start, stop] = this.span(i);
    const range = document.createRange();
    range.setStart(this.node, start);
    range.setEnd(this.node, stop);
    return range;
  }

  tokenAt(offset) {
    let low = 0, high = this.ends.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] > offset) high = middle; else low = middle + 1;
    }
    return this.first + low;
  }
}

class TreeView {
  constructor(record, selection, settings) {
    Object.assign(this, { record, selection, settings });
    this.leaves = new Map(); // text node -> Leaf
    this.box = element("div", { class: "mvspec tree" });
    // Repairs stand at the innermost node that holds their place.
    this.repairs = record.places.map((place, at) => [place, at]);
    this.children(record.tree, this.box, null);
    this.box.prepend(...this.repaired(-1, Infinity));
    this.box.addEventListener("pointermove", (event) => this.point(event));
    this.box.addEventListener("pointerleave", () => selection.hover(-1));
    this.box.addEventListener("click", (event) => this.click(event));
  }

  bar() {
    const record = this.record;
    const ways = [["plain", "Plain"]];
    if (record.spans.some((span) => span.author !== record.spans[0].author)) ways.push(["author", "Forced and free"]);
    if (record.logprobs) ways.push(["logprob", "Logprob"]);
    if (ways.length < 2) return null;
    const choice = element("select", { id: "shade", onchange: (event) => {
      this.settings.shade = event.target.value;
      this.paint();
    } }, ...ways.map(([value, name]) => element("option", { value, selected: this.settings.shade === value }, name)));
    return element("label", { class: "choice" }, "Shade ", choice);
  }

  children(rows, into, below) {
    const shown = rows.length > CHILD_LIMIT + 10 ? CHILD_LIMIT : rows.length;
    for (const row of rows.slice(0, shown)) into.append(this.node(row, below));
    if (shown < rows.length)
      into.append(element("button", { class: "more", onclick: (event) => {
        event.currentTarget.remove();
        for (const row of rows.slice(shown)) into.append(this.node(row, below));
        this.paint();
      } }, `… ${number(rows.length - shown)} more`));
  }

  node(row, below) {
    if (row.length === 2) return new Leaf(this, row[0], row[1]).box;
    const [kind, title, text, start, stop, inside] = row;
    if (kind === "parallel") return this.block(row);
    const box = element("div", { class: kind });
    const name = kind === "path" ? `path ${title}`.trim() : kind === "gen" ? `gen ${title}` : title || kind;
    const head = element("div", { class: "h" }, element("b", {}, quoted(name)));
    if (text) head.append(element("span", { class: "o" }, quoted(text)));
    box.append(head);
    if (kind === "path" && below) this.measure(box, head, start, stop, below);
    const body = kind === "message" || kind === "think" ? element("div", { class: "b" }) : box;
    if (body !== box && inside.length) box.append(body);
    this.children(inside, body, null);
    head.after(...this.repaired(start, stop));
    return box;
  }

  block(row) {
    const [, , , , , inside] = row;
    const paths = inside.filter((child) => child[0] === "path");
    const rest = inside.filter((child) => child[0] !== "path");
    let longest = 1;
    for (const path of paths) {
      const [first, last] = this.tokens(path[3], path[4]);
      longest = Math.max(longest, last - first);
    }
    const grid = element("div", { class: "g", vars: { "--n": Math.min(paths.length, 6) } });
    this.children(paths, grid, longest);
    const box = element("div", { class: "parallel" },
      element("div", { class: "h" }, element("b", {}, "parallel"),
        element("span", { class: "o" }, counted(paths.length, "path"))), grid);
    this.children(rest, box, null);
    box.firstElementChild.after(...this.repaired(row[3], row[4]));
    return box;
  }

  // The repairs from `start` up to `stop` that no node inside has taken.
  repaired(start, stop) {
    const { record } = this;
    const here = this.repairs.filter(([place]) => start <= place && place <= stop);
    this.repairs = this.repairs.filter((repair) => !here.includes(repair));
    return here.slice(0, CHILD_LIMIT).map(([, at]) => {
      const each = record.diagnostics[at];
      return element("button", { class: `repair ${each.severity ?? "error"}`, title: each.message,
        onclick: () => this.box.dispatchEvent(new CustomEvent("repair", { bubbles: true, detail: at })) },
        `${at + 1} ${each.code}`);
    });
  }

  // The tokens of a path: the separator before its tag is its own too.
  tokens(start, stop) {
    const { record } = this;
    let [first, last] = record.touched(start, stop);
    if (first < last) while (first > 0 && record.owner[first - 1] === record.owner[first]) first--;
    return [first, last];
  }

  // Colour, length against the longest sibling, and positions of a path.
  measure(box, head, start, stop, longest) {
    const [first, last] = this.tokens(start, stop);
    if (last <= first) return;
    const { record } = this, thread = record.owner[first];
    let high = record.position[first];
    for (let i = first; i < last; i++) high = Math.max(high, record.position[i]);
    box.style.setProperty("--path", record.colour(thread));
    box.dataset.thread = thread;
    head.append(element("span", { class: "n", vars: { "--share": `${(100 * (last - first)) / longest}%` } },
      `${counted(last - first, record.unit === "words" ? "word" : "token")} at ${number(record.position[first])}\u2013${number(high)}`));
  }

  // Tokens under the pointer

  tokenAt(x, y) {
    const at = document.caretPositionFromPoint
      ? document.caretPositionFromPoint(x, y)
      : document.caretRangeFromPoint?.(x, y);
    const node = at?.offsetNode ?? at?.startContainer;
    const leaf = this.leaves.get(node);
    if (!leaf || !leaf.ends.length) return [-1, null];
    const offset = at.offset ?? at.startOffset;
    // A caret stands between characters: the pointer may be on either side of it.
    for (const place of [offset, offset - 1]) {
      if (place < 0) continue;
      const token = leaf.tokenAt(place);
      const boxes = leaf.range(token).getClientRects();
      for (const box of boxes)
        if (box.left <= x && x <= box.right && box.top <= y && y <= box.bottom) return [token, leaf];
    }
    return [-1, null];
  }

  point(event) {
    const [token] = this.tokenAt(event.clientX, event.clientY);
    this.selection.hover(token, event.clientX, event.clientY);
  }

  click(event) {
    const [token] = this.tokenAt(event.clientX, event.clientY);
    if (token >= 0 && getSelection().isCollapsed) this.selection.choose(token);
  }

  leafOf(token) {
    for (const leaf of this.leaves.values())
      if (leaf.first <= token && token < leaf.last) {
        const [start, stop] = leaf.span(token);
        if (stop > start) return leaf;
      }
    return null;
  }

  // Colours of texts are highlights: the page has no element for each token

  paint() {
    if (!globalThis.Highlight) return;
    const kinds = { forced: [], given: [], sure3: [], sure2: [], sure1: [] };
    const { shade } = this.settings;
    const put = (kind, leaf, from, to) => {
      const start = leaf.span(from)[0], stop = leaf.span(to - 1)[1];
      if (stop > start)
        kinds[kind].push(new StaticRange({ startContainer: leaf.node, startOffset: start,
          endContainer: leaf.node, endOffset: stop }));
    };
    for (const leaf of this.record.length <= SHADED_LIMIT ? this.leaves.values() : []) {
      for (let i = leaf.first; i < leaf.last; i++) {
        const kind = shade === "author" ? ["given", "forced", ""][this.record.author[i]]
          : shade === "logprob" ? this.doubt(i) : "";
        if (kind) put(kind, leaf, i, i + 1);
      }
    }
    for (const [kind, ranges] of Object.entries(kinds)) CSS.highlights.set(kind, new Highlight(...ranges));
    this.mark();
  }

  // Less than a half, a tenth, a hundredth.
  doubt(i) {
    const logprob = this.record.logprobs?.[i];
    if (logprob === null || logprob === undefined) return "";
    return logprob < -4.6 ? "sure1" : logprob < -2.3 ? "sure2" : logprob < -0.7 ? "sure3" : "";
  }

  mark() {
    if (!globalThis.Highlight) return;
    const { token } = this.selection;
    const leaf = token >= 0 ? this.leafOf(token) : null;
    CSS.highlights.set("token", leaf ? new Highlight(leaf.range(token)) : new Highlight());
  }

  find(query) {
    if (!globalThis.Highlight) return;
    const found = [], wanted = query.toLowerCase();
    for (const leaf of wanted ? this.leaves.values() : []) {
      const text = leaf.node.data.toLowerCase();
      if (text.length !== leaf.node.data.length) continue; // letters that change their length
      for (let at = text.indexOf(wanted); at >= 0 && found.length < 2000; at = text.indexOf(wanted, at + wanted.length))
        found.push(new StaticRange({ startContainer: leaf.node, startOffset: at,
          endContainer: leaf.node, endOffset: at + wanted.length }));
    }
    CSS.highlights.set("match", new Highlight(...found));
    found[0]?.startContainer.parentElement.scrollIntoView({ block: "center" });
  }

  reveal(token) {
    const leaf = this.leafOf(token);
    const box = leaf?.range(token).getBoundingClientRect();
    if (!box) return;
    const frame = this.box.parentElement.getBoundingClientRect();
    if (box.top < frame.top || box.bottom > frame.bottom) leaf.box.scrollIntoView({ block: "nearest" });
  }
}
