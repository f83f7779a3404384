// Figures grow at a click or Enter; "p" or "?present" in the address makes a page fit for a projector.
"use strict";

function enlarge(link) {
  const dialog = document.createElement("dialog");
  const image = link.querySelector("img").cloneNode();
  dialog.className = "nadkit-large";
  image.removeAttribute("loading");
  image.removeAttribute("width");
  image.removeAttribute("height");
  dialog.append(image);
  dialog.addEventListener("click", () => dialog.close());
  // The theme's search takes Escape for itself, so the dialog would not hear of it.
  dialog.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" && event.key !== "Enter") return;
    event.preventDefault();
    event.stopPropagation();
    dialog.close();
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    link.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
}

// Enter on a link is a click. Without this script, the link leads to the picture itself.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.nadkit-enlarge");
  if (link && event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    enlarge(link);
  }
});

const present = (on) => document.documentElement.classList.toggle("nadkit-present", on);
if (new URLSearchParams(location.search).has("present")) present(true);
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input:not([type=radio]), textarea, select, [contenteditable]");
  if (event.key === "p" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) present();
});
