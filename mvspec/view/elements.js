// Elements are made of names, attributes and text: never out of strings of markup.
const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function byId(id) {
  return document.getElementById(id);
}

// Text that stands in its own direction, whatever it holds.
function quoted(text, attributes = {}) {
  return element("bdi", attributes, visibleLine(text));
}

// Rows of one height of which only those in view are in the page.
class Rows {
  constructor(frame, height, make) {
    this.frame = frame;
    this.height = height;
    this.make = make;
    this.inside = element("div", { class: "rows" });
    this.frame.append(this.inside);
    this.shown = new Map();
    this.length = 0;
    this.frame.addEventListener("scroll", () => this.later(), { passive: true });
    new ResizeObserver(() => this.later()).observe(this.frame);
  }

  reset(length) {
    this.length = length;
    this.inside.style.height = `${length * this.height}px`;
    for (const row of this.shown.values()) row.remove();
    this.shown.clear();
    this.draw();
  }

  later() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = undefined;
      this.draw();
    });
  }

  draw() {
    const room = this.frame.clientHeight;
    const first = Math.max(0, Math.floor(this.frame.scrollTop / this.height) - 4);
    const stop = Math.min(this.length, Math.ceil((this.frame.scrollTop + room) / this.height) + 4);
    for (const [at, row] of this.shown)
      if (at < first || at >= stop) {
        row.remove();
        this.shown.delete(at);
      }
    for (let at = first; at < stop; at++) {
      if (this.shown.has(at)) continue;
      const row = this.make(at);
      row.style.transform = `translateY(${at * this.height}px)`;
      this.shown.set(at, row);
      this.inside.append(row);
    }
  }

  reveal(at) {
    const top = at * this.height, room = this.frame.clientHeight;
    if (top < this.frame.scrollTop) this.frame.scrollTop = top;
    else if (top + this.height > this.frame.scrollTop + room)
      this.frame.scrollTop = top + this.height - room;
    this.draw();
  }
}
