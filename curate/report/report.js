// The sliders, which only look up counts that the page holds.
"use strict";
for (const root of document.querySelectorAll("[data-slider]")) {
  const told = JSON.parse(root.querySelector("script").textContent);
  const range = root.querySelector("input");
  const plot = root.querySelector(".plot");
  const say = (name, text) => {
    for (const place of root.querySelectorAll(`[data-say="${name}"]`)) place.textContent = text;
  };
  // Lines of a command break between its words only, as in the Python that renders the page.
  const sayCommand = (text) => {
    const pieces = text.split(/(\s+)/).map((piece) => {
      if (!piece.trim()) return piece;
      const word = document.createElement("span");
      word.className = "word";
      word.textContent = piece;
      return word;
    });
    for (const place of root.querySelectorAll('[data-say="command"]')) place.replaceChildren(...pieces);
  };
  const move = () => {
    const at = Number(range.value);
    const value = told.thresholds[at];
    for (const [name, counts] of Object.entries(told.columns)) {
      say(name, counts[at].toLocaleString("en-US"));
    }
    say("threshold", String(value));
    const drawn = Math.max(value, told.at_least);
    sayCommand(told.command.replaceAll("{}", String(value)).replaceAll("{drawn}", String(drawn)));
    range.setAttribute("aria-valuetext", `${told.setting} ${value}`);
    if (plot) {
      const share = (value - told.low) / (told.high - told.low);
      plot.style.setProperty("--at", Math.min(1, Math.max(0, share)));
    }
    for (const band of root.querySelectorAll("[data-low]")) {
      band.classList.toggle("above", Number(band.dataset.low) >= value - 1e-9);
      band.classList.toggle("below", Number(band.dataset.high) <= value + 1e-9);
    }
  };
  range.addEventListener("input", move);
  root.querySelector(".slider").hidden = false;
  move();
}
