// Where a token lies on an axis: positions, forwards of the model, or seconds.
const AXES = { position: "Positions", forward: "Forwards", second: "Seconds" };

class Axis {
  constructor(record, kind) {
    this.record = record;
    this.kind = kind;
    this.known = new Map(); // the bars of threads
    let end = 1;
    if (kind === "position")
      for (const span of record.spans) end = Math.max(end, span.position + span.stop - span.start);
    else if (kind === "forward") end = Math.max(1, record.ends.length);
    else end = Math.max(record.ends.at(-1) ?? 0, 1e-9);
    this.end = end;
  }

  static kinds(record) {
    return record.steps && record.ends?.length ? Object.keys(AXES) : ["position"];
  }

  // A boundary of forwards, in the axis's unit.
  boundary(forward) {
    if (this.kind === "forward") return forward;
    return forward <= 0 ? 0 : this.record.ends[forward - 1];
  }

  // A token of the model covers the forward that it came out of; others are marks at its end.
  token(i) {
    if (this.kind === "position") return [this.record.position[i], this.record.position[i] + 1];
    const step = this.record.steps[i];
    const stop = this.boundary(step + 1);
    return [this.record.author[i] === 2 ? this.boundary(step) : stop, stop];
  }

  // Bars of a thread: [author, start, stop, first token, one past the last].
  bars(thread) {
    if (!this.known.has(thread)) this.known.set(thread, this.kind === "position"
      ? this.record.own[thread].map((span) =>
        [span.author, span.position, span.position + span.stop - span.start, span.start, span.stop])
      : this.record.bars[thread].map(([author, start, stop, first, last]) =>
        [author, this.boundary(start), this.boundary(stop), first, last]));
    return this.known.get(thread);
  }

  // About so many round values up to the end.
  ticks(most) {
    const rough = this.end / Math.max(1, most);
    const power = 10 ** Math.floor(Math.log10(rough));
    let step = [1, 2, 5, 10].map((base) => base * power).find((each) => each >= rough);
    if (this.kind !== "second") step = Math.max(1, Math.round(step));
    const out = [];
    for (let at = 0; at <= this.end * 1.0001; at += step) out.push(at);
    return [out, this.kind === "second" ? Math.max(0, -Math.floor(Math.log10(step))) : 0];
  }
}
