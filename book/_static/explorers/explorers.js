// Interactive figures: fields above each one, a pointer on its marks, and the arrow keys choose what it shows; a
// sentence says it. Vega-Lite, in vega.js, draws. Without scripts, the picture in the page stands.
const STEPS = {
  right: { ArrowRight: 1, ArrowLeft: -1 },
  up: { ArrowUp: 1, ArrowDown: -1 },
  down: { ArrowDown: 1, ArrowUp: -1 },
};

function fieldOf(control, change) {
  const label = document.createElement("label");
  const words = typeof control.values[0] === "string";
  const input = document.createElement(words ? "select" : "input");
  input.name = control.name;
  const value = document.createElement("output");
  if (words) control.values.forEach((choice, i) => input.add(new Option(choice, i)));
  else Object.assign(input, { type: "range", min: 0, max: control.values.length - 1 });
  input.addEventListener("input", () => change(control, Number(input.value)));
  label.append(`${control.label} `, input, words ? "" : value);
  // A lone choice is none, but the figure is as it says.
  input.disabled = control.values.length < 2;
  control.show = (i) => {
    input.value = i;
    value.textContent = control.values[i];
    input.setAttribute("aria-valuetext", control.values[i]);
  };
  return label;
}

async function start(box) {
  const { spec, controls, words, missing } = JSON.parse(box.querySelector("script").textContent);
  const picture = box.querySelector(".nadkit-chart");
  const chart = document.createElement("div");
  const { view } = await vegaEmbed(chart, spec, { actions: false, renderer: "canvas", tooltip: false });

  const said = document.createElement("p");
  said.setAttribute("aria-live", "polite");
  said.className = "nadkit-said";
  const fields = document.createElement("div");
  fields.className = "nadkit-fields";
  const change = (control, i) => {
    if (i < 0 || i >= control.values.length || i === control.at) return;
    control.at = i;
    control.show(i);
    view.signal(control.name, control.values[i]).run();
    said.textContent = words[controls.map((c) => c.values[c.at]).join("|")] ?? missing;
  };
  for (const control of controls) fields.append(fieldOf(control, change));
  for (const control of controls) {
    control.at = control.values.indexOf(control.start);
    control.show(control.at);
  }
  said.textContent = words[controls.map((c) => c.values[c.at]).join("|")] ?? missing;

  const stepped = controls.filter((control) => control.keys);
  Object.assign(chart, { className: "nadkit-chart", tabIndex: 0, role: "group" });
  const how = stepped.map((control) => `${control.keys}: next ${control.label}`);
  chart.setAttribute("aria-label", `${picture.querySelector("img").alt} Arrow keys, ${how.join("; ")}.`);
  chart.addEventListener("keydown", (event) => {
    const control = stepped.find((one) => event.key in STEPS[one.keys]);
    if (!control) return;
    event.preventDefault();
    change(control, control.at + STEPS[control.keys][event.key]);
  });
  for (const kind of ["pointermove", "pointerdown"])
    view.addEventListener(kind, (event, item) => {
      for (const control of controls) change(control, control.values.indexOf(item?.datum?.[control.name]));
    });
  picture.replaceWith(chart);
  box.prepend(fields, said);
}

for (const box of document.querySelectorAll(".nadkit-explorer")) start(box);
