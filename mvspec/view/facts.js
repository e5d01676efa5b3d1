// The head of a record: what it is called, its verdict, its numbers.
const VERDICTS = {
  ok: "well-formed",
  cut: "cut",
  malformed: "malformed",
  unread: "not readable",
};

function badge(verdict, text = verdict) {
  return element("span", { class: `badge ${verdict}` }, text);
}

function judged(right) {
  return right === null ? null : badge(right ? "right" : "wrong");
}

function showFacts(record) {
  byId("name").replaceChildren(quoted(record.name));
  byId("verdict").replaceChildren(
    ...[record.verdict ? badge(record.verdict, VERDICTS[record.verdict]) : null, judged(record.right)].filter(Boolean),
  );
  byId("asked").replaceChildren(...record.asked.map(([name, value]) =>
    element("div", {}, element("dt", {}, quoted(name)), element("dd", { class: "t", dir: "auto" }, visible(value)))));
  const own = record.spans.reduce((sum, s) => sum + (s.author ? s.stop - s.start : 0), 0);
  const forced = record.spans.reduce((sum, s) => sum + (s.author === 1 ? s.stop - s.start : 0), 0);
  const facts = [];
  if (own) {
    facts.push([record.unit, `${number(own)}`, `${number(forced)} of them forced`]);
    facts.push(["critical path", number(record.critical)]);
    facts.push(["degree of parallelism", degree(record.parallelism)]);
  }
  const blocks = new Set(record.threads.slice(1).map((thread) => thread[3])).size;
  if (blocks) {
    facts.push(["blocks", number(blocks)]);
    facts.push(["paths", number(record.threads.length - 1)]);
  }
  for (const [name, value] of record.facts) facts.push([name, value]);
  if (record.label) facts.push(["of", record.label]);
  if (record.place !== record.name) facts.push(["read from", record.place]);
  byId("facts").replaceChildren(
    ...facts.map(([name, value, note]) =>
      element("div", note ? { title: note } : {}, element("dt", {}, name), element("dd", {}, quoted(value)))),
  );
}
