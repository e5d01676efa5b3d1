// One record, decoded: its tokens by number, by character and by thread.
const AUTHORS = ["prompt", "engine", "model"];
const WRITERS = ["prompt", "forced", "free"];

function unramped(ramps) {
  const out = [];
  for (let at = 0; at < ramps.length; at += 3)
    for (let step = 0; step < ramps[at + 2]; step++) out.push(ramps[at] + step * ramps[at + 1]);
  return out;
}

class ViewedRecord {
  constructor(number, index, searched, rest) {
    Object.assign(this, rest);
    [this.name, this.kind, this.verdict, this.right, this.label] = index;
    this.parallelism = index[7];
    this.codes = index[9];
    this.number = number;
    [this.text, this.source] = searched;
    this.fields = rest.keys.map((key, at) => [key, searched[at + 2]]);
    const n = this.widths.length;
    this.length = n;
    this.starts = new Uint32Array(n + 1);
    for (let i = 0; i < n; i++) this.starts[i + 1] = this.starts[i] + this.widths[i];
    this.owner = new Uint32Array(n);
    this.position = new Int32Array(n);
    this.author = new Uint8Array(n);
    this.spans = []; // {thread, author, start, stop, position}
    this.own = this.threads.map(() => []); // the spans of each thread
    let token = 0;
    for (let at = 0; at < rest.runs.length; at += 4) {
      const [thread, author, count, position] = rest.runs.slice(at, at + 4);
      const span = { thread, author, start: token, stop: token + count, position };
      this.spans.push(span);
      this.own[thread].push(span);
      this.owner.fill(thread, token, token + count);
      this.author.fill(author, token, token + count);
      for (let i = 0; i < count; i++) this.position[token + i] = position + i;
      token += count;
    }
    this.ids = rest.ids ? unramped(rest.ids) : null;
    this.steps = rest.steps ? unramped(rest.steps) : null;
    this.ends ??= null;
    this.logprobs ??= null;
  }

  token(i) {
    return this.text.slice(this.starts[i], this.starts[i + 1]);
  }

  // The token that holds a character, the last of those that begin there.
  at(offset) {
    let low = 0, high = this.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.starts[middle] <= offset) low = middle; else high = middle;
    }
    return low;
  }

  // The tokens that characters [start, stop) touch, as [first, one past the last].
  touched(start, stop) {
    if (stop <= start) return [0, 0];
    let first = this.at(start);
    while (first > 0 && this.starts[first] === start && this.widths[first - 1] === 0) first--;
    return [first, this.at(stop - 1) + 1];
  }

  // The path of a thread from the outermost block in, as numbers of threads.
  chain(thread) {
    const out = [];
    for (let at = thread; at > 0; at = this.threads[at][2]) out.unshift(at);
    return out;
  }

  siblings(thread) {
    const block = this.threads[thread][3];
    this.blocks ??= Map.groupBy(this.threads.keys(), (each) => this.threads[each][3]);
    return this.blocks.get(block);
  }

  path(thread) {
    if (thread === 0) return "root";
    return visibleLine(this.threads[thread][0]) || `thread ${thread}`;
  }

  // Why a query does not see a key; "" where it does.
  blind(query, key) {
    if (key > query) return "still to come";
    const hidden = this.hidden[this.owner[query]];
    for (let at = 0; at < hidden.length; at += 2)
      if (hidden[at] <= key && key < hidden[at + 1]) return "another path";
    return "";
  }

  // The colour of a thread: the hue of its outermost path, in a shade for paths inside it.
  colour(thread) {
    const chain = this.chain(thread);
    if (!chain.length) return "var(--root)";
    const hue = `var(--p${this.siblings(chain[0]).indexOf(chain[0]) % 8})`;
    if (chain.length === 1) return hue;
    const last = chain.at(-1);
    const share = 80 - 18 * (this.siblings(last).indexOf(last) % 3);
    return `color-mix(in oklab, ${hue} ${share}%, var(--paper))`;
  }
}
