function (name, data) {
  const root = document.getElementById(name);
  const here = root.querySelector(".here");
  const x0 = data.x, y0 = data.y;
  // The cross of the pointer, and what takes the pointer: above the picture of the mask.
  const drawn = (kind, attributes) => {
    const node = document.createElementNS(root.querySelector("svg").namespaceURI, kind);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return root.querySelector("svg").appendChild(node);
  };
  const cross = drawn("path", { stroke: "#000", "stroke-opacity": 0.55, fill: "none" });
  const mask = drawn("rect", { x: x0, y: y0, width: data.side, height: data.side, "fill-opacity": 0 });
  const edge = (cell) => Math.floor((cell * data.n) / data.cells);
  // The number of the last entry of a sorted list that is not above a value.
  const find = (list, value) => {
    let low = 0, high = list.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (list[middle] <= value) low = middle; else high = middle;
    }
    return low;
  };
  const hasLoss = (index) => {
    if (!data.loss.length || index < data.loss[0]) return false;
    return find(data.loss, index) % 2 === 0;
  };
  // How many keys of [k0, k1) a query sees.
  const sees = (query, k0, k1) => {
    const stretch = find(data.starts, query);
    const first = data.padding[stretch] ? query : data.first[stretch];
    let count = Math.max(0, Math.min(k1, query + 1) - Math.max(k0, first));
    const hides = data.hides[stretch];
    for (let i = 0; i < hides.length; i += 2)
      count -= Math.max(0, Math.min(k1, hides[i + 1]) - Math.max(k0, hides[i]));
    return count;
  };
  const describe = (index) => {
    const stretch = find(data.starts, index);
    if (data.padding[stretch]) return `${index}  padding`;
    const position = data.positions[stretch] + index - data.starts[stretch];
    const path = data.paths[stretch] ? `path ${data.paths[stretch]}` : "outside of paths";
    const text = data.texts ? `\n    ${JSON.stringify(data.texts[index])}`
      : data.ids ? `\n    id ${data.ids[index]}` : "";
    return `${index}  position ${position}, ${path}${hasLoss(index) ? ", loss" : ""}${text}`;
  };
  const range = (a, b) => {
    if (b - a === 1) return describe(a);
    return `${a} to ${b - 1}\n  ${describe(a)}`;
  };
  mask.addEventListener("mousemove", (event) => {
    const box = mask.getBoundingClientRect();
    const cell = (at, start, size) =>
      Math.max(0, Math.min(data.cells - 1, Math.floor(((at - start) / size) * data.cells)));
    const row = cell(event.clientY, box.top, box.height);
    const column = cell(event.clientX, box.left, box.width);
    const q0 = edge(row), q1 = edge(row + 1), k0 = edge(column), k1 = edge(column + 1);
    let seen = 0;
    for (let query = q0; query < q1; query++) seen += sees(query, k0, k1);
    const pairs = (q1 - q0) * (k1 - k0);
    const verdict = pairs > 1 ? `${((100 * seen) / pairs).toFixed(1)} % of ${pairs} pairs visible`
      : seen ? "sees it" : k0 > q0 ? "does not see it: still to come"
      : k0 < data.first[find(data.starts, q0)] ? "does not see it: another document"
      : "does not see it: another path";
    here.textContent = `query ${range(q0, q1)}\n\nkey ${range(k0, k1)}\n\n${verdict}`;
    const step = data.side / data.cells;
    const x = x0 + (column + 0.5) * step, y = y0 + (row + 0.5) * step;
    cross.setAttribute("d", `M${x0} ${y}H${x0 + data.side}M${x} ${y0}V${y0 + data.side}`);
  });
  mask.addEventListener("mouseleave", () => { cross.setAttribute("d", ""); here.textContent = ""; });
}
