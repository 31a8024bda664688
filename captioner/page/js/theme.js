// Light, dark, or as the system is; the choice is remembered.

const THEMES = ["system", "light", "dark"];

export function startTheme(button) {
  const set = (name) => {
    if (name === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    button.querySelector("b").textContent = name;
    localStorage.setItem("captioner-theme", name);
  };
  const known = localStorage.getItem("captioner-theme");
  set(THEMES.includes(known) ? known : "system");
  button.addEventListener("click", () => {
    const name = document.documentElement.dataset.theme ?? "system";
    set(THEMES[(THEMES.indexOf(name) + 1) % THEMES.length]);
  });
}
