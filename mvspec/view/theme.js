// Light or dark: the system's, until somebody chooses.
class Theme extends EventTarget {
  constructor() {
    super();
    this.button = byId("theme");
    this.system = matchMedia("(prefers-color-scheme: dark)");
    this.probe = element("i", { hidden: true });
    document.body.append(this.probe);
    try {
      document.documentElement.dataset.theme = localStorage.getItem("mvspec-theme") ?? "";
    } catch { /* a page without storage forgets the choice */ }
    this.system.addEventListener("change", () => this.tell());
    this.button.addEventListener("click", () => this.turn());
    this.tell();
  }

  get dark() {
    const { theme } = document.documentElement.dataset;
    return theme ? theme === "dark" : this.system.matches;
  }

  turn() {
    const theme = this.dark ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("mvspec-theme", theme);
    } catch { /* as above */ }
    this.tell();
  }

  tell() {
    this.button.textContent = this.dark ? "Light" : "Dark";
    this.dispatchEvent(new Event("change"));
  }

  // A colour of the style sheet as a canvas takes it.
  colour(value) {
    this.probe.style.color = value;
    return getComputedStyle(this.probe).color;
  }
}
