// Labels that a reader gives enlarged pictures, saved as the CSV that `lvd-curate label` reads.
"use strict";
const said = new Map();
const bar = document.querySelector(".said");
const offer = dialog.querySelector(".label");
let labelled = null;
let unsaved = false;
// The picture that stands for this one, of other bytes; null where there is none.
const framedBeside = (button) => {
  const framed = button.closest(".pairs > div, .tiles")?.querySelector(".framed [data-bytes]");
  return framed && framed.dataset.bytes !== button.dataset.bytes ? framed : null;
};
const placeOf = (button, label) => label === "not_a_copy"
  ? [button, framedBeside(button)].map((one) => one.dataset.bytes).sort().join(" ")
  : button.dataset.bytes;
const showLabels = () => {
  for (const button of offer.children) {
    const { label } = button.dataset;
    button.hidden = label === "not_a_copy" && !framedBeside(labelled);
    button.ariaPressed = String(!button.hidden && said.get(placeOf(labelled, label))?.[0] === label);
  }
  const keys = new Set([...said.values()].map(([, key]) => key));
  for (const button of document.querySelectorAll("[data-bytes]")) {
    button.classList.toggle("labelled", keys.has(button.dataset.key));
  }
  bar.hidden = !said.size;
  bar.querySelector("b").textContent = said.size === 1 ? "1 label" : `${said.size} labels`;
};
dialog.addEventListener("picture", ({ detail: button }) => {
  offer.hidden = !button.dataset.bytes;
  labelled = button;
  if (!offer.hidden) showLabels();
});
offer.addEventListener("click", ({ target: { dataset: { label } } }) => {
  if (!label) return;
  const place = placeOf(labelled, label);
  const other = label === "not_a_copy" ? framedBeside(labelled).dataset.key : "";
  if (said.get(place)?.[0] === label) said.delete(place);
  else said.set(place, [label, labelled.dataset.key, other]);
  unsaved = said.size > 0;
  showLabels();
});
bar.querySelector("button").addEventListener("click", () => {
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  const lines = [["label", "key", "other"], ...said.values()].map((line) => line.map(quoted).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
  link.download = "labels.csv";
  link.click();
  URL.revokeObjectURL(link.href);
  unsaved = false;
});
window.addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
