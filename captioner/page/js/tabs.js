// Tabs as screen readers know them: arrows move, the chosen panel alone is shown.

import { byId, focusOnly, moveByArrows } from "./element.js";

// `shown(panel)` is called whenever a panel becomes visible.
export function startTabs(list, shown) {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  const show = (chosen) => {
    focusOnly(tabs, chosen);
    for (const tab of tabs) {
      const on = tab === chosen;
      tab.setAttribute("aria-selected", on);
      byId(tab.getAttribute("aria-controls")).hidden = !on;
    }
    shown(chosen.getAttribute("aria-controls"));
  };
  for (const tab of tabs) tab.addEventListener("click", () => show(tab));
  moveByArrows(list, "[role=tab]", show);
}
