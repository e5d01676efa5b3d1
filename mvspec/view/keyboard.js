// Keys for all that the pointer does, and the page that lists them.
class Keyboard {
  constructor(list, view, search, theme) {
    const dialog = byId("keys");
    this.keys = [
      ["j", "next record", () => list.move(1)],
      ["k", "previous record", () => list.move(-1)],
      ["1 \u2026 6", "views: tree, timeline, mask, \u2026", null],
      ["/", "search", () => { byId("search").focus(); byId("search").select(); }],
      ["l", "to the list: arrows, Page Up, Page Down, Home, End", () => byId("list").focus()],
      ["r", "to the record", () => byId("panel").focus()],
      ["\u2190 \u2192", "in the record: from token to token, after a click on one", null],
      ["d", "light or dark", () => theme.turn()],
      ["Esc", "leave the search, clear it, close", null],
      ["?", "these keys", () => dialog.showModal()],
    ];
    byId("key-list").append(...this.keys.flatMap(([key, what]) => [
      element("dt", {}, element("kbd", {}, key)), element("dd", {}, what)]));
    byId("help").addEventListener("click", () => dialog.showModal());
    byId("keys-close").addEventListener("click", () => dialog.close());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return this.leave(search, view);
      if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
      if (event.target.closest?.("input, select, textarea")) {
        if (event.key === "Enter" && event.target === search.input) byId("list").focus();
        return;
      }
      const tab = Number(event.key);
      const action = this.keys.find(([key]) => key === event.key)?.[2];
      if (tab >= 1 && tab <= 6) view.showNumber(tab);
      else if (action) action();
      else return;
      event.preventDefault();
    });
  }

  leave(search, view) {
    view.selection.leave();
    if (document.activeElement !== search.input) return;
    if (search.input.value) search.clear();
    else search.input.blur();
  }
}
