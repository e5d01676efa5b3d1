// Characters that cannot be seen, or would reorder a line, are written out: as views.py does it.
const UNSEEN = /[\p{C}\p{Zl}\p{Zp}]/gu;
const PLAIN = /^[\x20-\x7e\n]*$/;

function picture(character) {
  if (character === "\n" || character === "\u200c" || character === "\u200d") return character;
  if (character === "\t") return "    ";
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  const digits = code.toString(16);
  return code > 0xffff ? `\\U${digits.padStart(8, "0")}` : `\\u${digits.padStart(4, "0")}`;
}

function visible(text) {
  return PLAIN.test(text) ? text : text.replace(UNSEEN, picture);
}

// In one line: newlines and the spaces at the edges of a token show.
function visibleLine(text) {
  return visible(text).replaceAll("\n", "\u240a");
}

const grouped = new Intl.NumberFormat("en");

function number(value, digits = 0) {
  return digits ? value.toFixed(digits) : grouped.format(value);
}

// A degree of parallelism, rounded as `mvspec stats` rounds it.
function degree(value) {
  return value.toFixed(3);
}

function counted(value, noun) {
  return `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
}
