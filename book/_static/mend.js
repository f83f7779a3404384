// What readers without a mouse or without sight need, and the theme and docutils leave out.
function mend() {
  // What scrolls sideways can be reached by the Tab key.
  for (const element of document.querySelectorAll("main div, main pre, main table")) {
    const scrolls = /auto|scroll/.test(getComputedStyle(element).overflowX);
    if (scrolls && element.scrollWidth > element.clientWidth) element.tabIndex = 0;
  }
  // Parameters that have a line each are no list of definitions.
  document.querySelectorAll("dt dl, dt dl > dd").forEach((part) => part.setAttribute("role", "none"));
  // The bibliography calls itself a list, but its entries are none of a list.
  document.querySelectorAll('.citation-list[role="list"]').forEach((list) => list.removeAttribute("role"));
}
for (const event of ["load", "resize"]) window.addEventListener(event, mend);
