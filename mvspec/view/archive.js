// The records of the page: compressed groups of two lines each, decoded when somebody asks.
const KEPT_GROUPS = 12;
const KEPT_CHARACTERS = 80_000_000;

async function inflate(base64) {
  const bytes = Uint8Array.fromBase64
    ? Uint8Array.fromBase64(base64)
    : Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

class Archive {
  constructor(root) {
    this.groups = [...root.querySelectorAll('script[data-part="records"]')];
    this.firsts = this.groups.map((group) => Number(group.dataset.first));
    this.indexPart = root.querySelector('script[data-part="index"]');
    this.lines = new Map(); // of groups that were asked for last
    this.searched = new Map(); // group -> the texts of its records, in lower case
    this.searchedSize = 0;
  }

  // [name, kind, verdict, right, label, lead, tokens, parallelism, blocks, codes] of each record.
  async index() {
    return JSON.parse(await inflate(this.indexPart.textContent));
  }

  groupOf(record) {
    let low = 0, high = this.firsts.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.firsts[middle] <= record) low = middle; else high = middle;
    }
    return low;
  }

  async group(index) {
    const kept = this.lines.get(index);
    const lines = kept ?? (await inflate(this.groups[index].textContent)).split("\n");
    this.lines.delete(index);
    this.lines.set(index, lines);
    if (this.lines.size > KEPT_GROUPS) this.lines.delete(this.lines.keys().next().value);
    return lines;
  }

  // What a search reads of a record, and all else that its view shows.
  async record(index) {
    const group = this.groupOf(index);
    const lines = await this.group(group);
    const at = 2 * (index - this.firsts[group]);
    return [JSON.parse(lines[at]), JSON.parse(lines[at + 1])];
  }

  // The texts of a group's records, for searches that do not mind case.
  async texts(index) {
    const kept = this.searched.get(index);
    if (kept) return kept;
    const lines = this.lines.get(index) ?? (await inflate(this.groups[index].textContent)).split("\n");
    const texts = [];
    for (let at = 0; at < lines.length; at += 2)
      texts.push(JSON.parse(lines[at]).filter((text) => text !== null).join("\n").toLowerCase());
    const size = texts.reduce((sum, text) => sum + text.length, 0);
    if (this.searchedSize + size <= KEPT_CHARACTERS) {
      this.searched.set(index, texts);
      this.searchedSize += size;
    }
    return texts;
  }
}
