"use strict";
{
  const table = document.getElementById("cells");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const inputs = ["words", "protocol", "attack", "clean"].map((id) => document.getElementById(id));
  const [words, protocol, attack, clean] = inputs;
  const text = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

  // What is not known comes last, whichever way it is sorted.
  function value(row, column) {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent.trim().toLowerCase() || null;
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  }

  function sort(column, direction) {
    const sign = direction === "descending" ? -1 : 1;
    const keyed = rows.map((row, place) => ({ row, place, key: value(row, column) }));
    keyed.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
      const order = typeof a.key === "number" ? a.key - b.key : a.key.localeCompare(b.key);
      return sign * order || a.place - b.place;
    });
    body.append(...keyed.map((one) => one.row));
    heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? direction : "none"));
  }

  function filter() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      row.hidden =
        !wanted.every((word) => text.get(row).includes(word)) ||
        (protocol.value !== "" && row.dataset.protocol !== protocol.value) ||
        (attack.value !== "" && row.dataset.attack !== attack.value) ||
        (clean.checked && row.dataset.flags !== "0");
      shown += !row.hidden;
    }
    for (const point of document.querySelectorAll(".plot a"))
      point.toggleAttribute("hidden", document.getElementById(point.getAttribute("href").slice(1)).hidden);
    for (const section of document.querySelectorAll("[data-of]"))
      section.hidden = protocol.value !== "" && section.dataset.of !== protocol.value;
    document.getElementById("count").textContent = `${shown} of ${rows.length} cells`;
  }

  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const first = head.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      sort(column, head.getAttribute("aria-sort") === first ? other : first);
    });
  });
  for (const input of inputs) input.addEventListener("input", filter);
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  for (const point of document.querySelectorAll(".plot a")) {
    const tip = point.closest("section").querySelector(".tip");
    for (const kind of ["pointerenter", "focus"])
      point.addEventListener(kind, () => { tip.textContent = point.getAttribute("aria-label"); });
  }
}
