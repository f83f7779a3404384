// The scorecard's filter: fields above the table, and a click on a column's title to sort by it. Without this script
// the whole table stands; DataTables, beside it in ../datatables, does the searching and the sorting.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector("form.nadkit-filter");
  if (!form) return;
  const count = form.querySelector("output");
  const choices = [...form.querySelectorAll("select")];
  const table = new DataTable(".nadkit-scorecard", {
    autoWidth: false,
    info: false,
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
    order: [],
    paging: false,
  });
  const rows = table.rows().nodes().toArray();

  const draw = () => {
    table.search(form.elements.words.value).draw();
    count.textContent = `${table.rows({ search: "applied" }).count()} of ${rows.length} claims`;
  };
  // A link to a row shows that row, whatever was filtered, with where its numbers come from.
  const open = () => {
    const row = rows.find((row) => `#${row.id}` === location.hash);
    if (!row) return;
    form.reset();
    draw();
    row.querySelector("details").open = true;
    row.scrollIntoView();
  };

  table.search.fixed("choices", (words, cells, i) =>
    choices.every((choice) => !choice.value || rows[i].dataset[choice.name] === choice.value));
  form.addEventListener("input", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(draw)); // when the fields are empty
  window.addEventListener("hashchange", open);
  form.hidden = false;
  draw();
  open();
});
