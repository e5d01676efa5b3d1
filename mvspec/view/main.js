// From the parts to the page. What is open stands in the address: #12/mask.
async function main() {
  const root = document.documentElement;
  if (!globalThis.DecompressionStream) {
    byId("count").textContent = "This browser cannot decompress: use one of 2023 or later.";
    return;
  }
  const archive = new Archive(document);
  const index = await archive.index();
  const theme = new Theme();
  const list = new RecordList(index);
  const view = new RecordView(archive, index, theme);
  const search = new Search(archive, index, list);
  new Keyboard(list, view, search, theme);
  root.classList.toggle("single", index.length === 1);

  const address = () => {
    const [, record, tab] = /^#(\d+)(?:\/(\w+))?$/.exec(location.hash) ?? [];
    if (tab) view.tab = tab;
    if (record) return Math.min(Number(record), index.length) - 1;
    return Math.max(0, index.findIndex(([, kind]) => kind !== "settings"));
  };
  const turns = () => {
    const at = list.place(list.chosen);
    byId("previous").disabled = at === 0 || !list.length;
    byId("next").disabled = at === list.length - 1 || !list.length;
  };
  list.addEventListener("choose", () => {
    root.classList.remove("drawn");
    byId("drawer").setAttribute("aria-expanded", "false");
    view.open(list.chosen);
  });
  view.addEventListener("open", () => {
    if (!performance.getEntriesByName("mvspec-shown").length) performance.mark("mvspec-shown");
    turns();
    history.replaceState(null, "", `#${list.chosen + 1}/${view.shown ?? ""}`);
  });
  search.addEventListener("done", () => {
    if (search.query && list.length && list.place(list.chosen) < 0) list.choose(list.record(0));
    else list.choose(list.chosen, true);
    view.find(search.query);
    turns();
  });
  byId("previous").addEventListener("click", () => list.move(-1));
  byId("next").addEventListener("click", () => list.move(1));
  byId("drawer").addEventListener("click", (event) => {
    const open = root.classList.toggle("drawn");
    event.currentTarget.setAttribute("aria-expanded", String(open));
    list.rows.later();
  });
  addEventListener("hashchange", () => list.choose(address()));

  list.show(null);
  search.tell(index.length);
  if (index.length) list.choose(address());
  else byId("panel").append(element("p", { class: "note" }, "There are no records."));
  root.classList.add("ready");
}

main();
