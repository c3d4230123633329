// Pictures that enlarge, and keys that turn to the next one.
"use strict";
const dialog = document.querySelector("dialog");
const pictures = [...document.querySelectorAll("button.picture")];
let shown = 0;
const enlarge = (place) => {
  shown = (place + pictures.length) % pictures.length;
  const [from, to] = [pictures[shown].querySelector("img"), dialog.querySelector("img")];
  to.src = from.src;
  to.className = from.className;
  to.alt = pictures[shown].dataset.key;
  const caption = pictures[shown].closest("figure").querySelector("figcaption");
  dialog.querySelector("p").textContent = [
    ...[...caption.children].map((line) => line.textContent), pictures[shown].dataset.detail,
  ].filter(Boolean).join(" · ");
  dialog.dispatchEvent(new CustomEvent("picture", { detail: pictures[shown] }));
};
pictures.forEach((button, place) => button.addEventListener("click", () => {
  enlarge(place);
  dialog.showModal();
}));
dialog.querySelector("[autofocus]").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => pictures[shown].focus());
dialog.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) enlarge(shown + step);
});
