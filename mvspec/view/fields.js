// What else the record's row says.
const FIELD_LIMIT = 20_000;

class FieldsView {
  constructor(record) {
    this.box = element("dl", { class: "fields" }, ...record.fields.map(([name, value]) => {
      const body = element("dd", { class: "t", dir: "auto" }, visible(value.slice(0, FIELD_LIMIT)));
      if (value.length > FIELD_LIMIT)
        body.append(element("button", { class: "more", onclick: () => { body.textContent = visible(value); } },
          `… ${number(value.length - FIELD_LIMIT)} more characters`));
      return element("div", {}, element("dt", {}, quoted(name)), body);
    }));
  }

  bar() {
    return null;
  }

  mark() {}

  paint() {}

  reveal() {}
}
