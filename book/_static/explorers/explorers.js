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
  control.show = (i, allowed) => {
    if (words)
      [...input.options].forEach((option, j) => {
        option.disabled = option.hidden = !allowed.includes(j);
      });
    // The figure is as a lone choice says.
    input.disabled = allowed.length < 2;
    input.value = i;
    value.textContent = control.values[i];
    if (!words) input.setAttribute("aria-valuetext", control.values[i]);
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
  const keys = Object.keys(words).map((key) => `${key}|`);
  const state = (chosen) => chosen.map((c) => `${c.values[c.at]}|`).join("");
  // The choices of a field are those measured with what the fields before it say; a slider has all its values.
  const allowed = (control) => {
    const before = state(controls.slice(0, controls.indexOf(control)));
    const all = control.values.map((_, i) => i);
    if (typeof control.values[0] !== "string") return all;
    return all.filter((i) => keys.some((key) => key.startsWith(`${before}${control.values[i]}|`)));
  };
  // Each field in turn keeps its choice where that was measured, or takes the first that was.
  const show = () => {
    for (const control of controls) {
      const choices = allowed(control);
      if (!choices.includes(control.at)) control.at = choices[0] ?? control.at;
      control.show(control.at, choices);
      view.signal(control.name, control.values[control.at]);
    }
    view.run();
    said.textContent = words[state(controls).slice(0, -1)] ?? missing;
  };
  const change = (control, i) => {
    if (i === control.at || !allowed(control).includes(i)) return;
    control.at = i;
    show();
  };
  for (const control of controls) {
    const field = fieldOf(control, change);
    if (control.values.length > 1) fields.append(field);
    control.at = control.values.indexOf(control.start);
  }
  show();

  const stepped = controls.filter((control) => control.keys && control.values.length > 1);
  Object.assign(chart, { className: "nadkit-chart", tabIndex: 0, role: "group" });
  const how = stepped.map((control) => `${control.keys}: next ${control.label}`);
  chart.setAttribute("aria-label", `${picture.querySelector("img").alt} Arrow keys, ${how.join("; ")}.`);
  chart.addEventListener("keydown", (event) => {
    const control = stepped.find((one) => event.key in STEPS[one.keys]);
    if (!control) return;
    event.preventDefault();
    const choices = allowed(control);
    change(control, choices[choices.indexOf(control.at) + STEPS[control.keys][event.key]]);
  });
  for (const kind of ["pointermove", "pointerdown"])
    view.addEventListener(kind, (event, item) => {
      for (const control of controls) change(control, control.values.indexOf(item?.datum?.[control.name]));
    });
  picture.replaceWith(chart);
  box.prepend(fields, said);
}

for (const box of document.querySelectorAll(".nadkit-explorer")) start(box);
