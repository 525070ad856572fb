"use strict";
// The tables of a report: each is data in the page, which is sorted, filtered and searched here. Nothing is fetched.
const STEP = innerWidth < 700 ? 6 : 15; // rows that are shown at first, and with each "more"
const shown = (cell) => (Array.isArray(cell) ? cell[1] : cell);
const ranked = (cell) => (Array.isArray(cell) ? cell[0] : cell);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function compare(a, b) {
  if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1; // what was not measured comes last
  return typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
}

function grid(place) {
  const data = JSON.parse(place.querySelector("script").textContent);
  let sort = data.columns.indexOf(data.sort), descending = data.descending, limit = STEP;
  const search = element("input", { type: "search" });
  const selects = Object.entries(data.filters).map(([column, chosen]) => {
    const at = data.columns.indexOf(column);
    const values = [...new Set(data.rows.map((row) => row[at]))].sort(compare);
    const select = element("select", {}, element("option", { value: "", textContent: "all" }));
    select.append(...values.map((value) => element("option", { value, textContent: value || "none" })));
    select.value = values.includes(chosen) ? chosen : "";
    return { at, column, select };
  });
  const count = element("span", { className: "count" });
  count.setAttribute("role", "status");
  const heads = data.columns.map((column, at) => {
    const button = element("button", { type: "button", textContent: column });
    button.addEventListener("click", () => {
      descending = sort === at ? !descending : false;
      sort = at;
      draw();
    });
    return element("th", { scope: "col" }, button);
  });
  const body = element("tbody");
  const more = element("button", { type: "button", className: "more", textContent: "Show more" });

  function chosen() {
    const sought = search.value.trim().toLowerCase();
    const rows = data.rows.filter((row) => {
      if (!selects.every(({ at, select }) => !select.value || row[at] === select.value)) return false;
      return row.map(shown).join(" ").toLowerCase().includes(sought);
    });
    if (sort < 0) return rows;
    return [...rows].sort((a, b) => {
      const order = compare(ranked(a[sort]), ranked(b[sort]));
      return descending && ranked(a[sort]) !== null && ranked(b[sort]) !== null ? -order : order;
    });
  }

  function draw() {
    const rows = chosen();
    body.replaceChildren(
      ...rows.slice(0, limit).map((row) => element("tr", {}, ...row.map((cell, at) => {
        const text = shown(cell);
        const made = element("td", { textContent: text });
        if (text.length > 100) made.classList.add("long");
        if (text === "passed" || text === "failed") made.classList.add(text);
        made.dataset.label = data.columns[at];
        return made;
      }))),
    );
    heads.forEach((head, at) => {
      if (at === sort) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    count.textContent = `${Math.min(limit, rows.length)} of ${rows.length} rows`;
    more.hidden = rows.length <= limit;
  }

  const again = () => { limit = STEP; draw(); };
  search.addEventListener("input", again);
  selects.forEach(({ select }) => select.addEventListener("change", again));
  more.addEventListener("click", () => { limit += STEP; draw(); });
  const controls = element("div", { className: "controls" }, element("label", {}, "Search", search));
  controls.append(...selects.map(({ column, select }) => element("label", {}, column, select)), count);
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body);
  const frame = element("div", { className: "table", tabIndex: 0 }, table);
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", `${place.dataset.title}, table`);
  place.append(controls, frame, more);
  draw();
}

function tips(drawing) {
  const tip = document.getElementById("tip");
  const near = 24; // pixels
  drawing.addEventListener("pointermove", (event) => {
    let best = null, least = near;
    for (const mark of drawing.querySelectorAll("[data-tip]")) {
      const box = mark.getBoundingClientRect();
      const away = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
      if (away < least) [best, least] = [mark, away];
    }
    tip.hidden = best === null;
    if (best === null) return;
    tip.textContent = best.dataset.tip;
    const width = tip.getBoundingClientRect().width;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 4))}px`;
    tip.style.top = `${event.clientY + 18}px`;
  });
  drawing.addEventListener("pointerleave", () => { tip.hidden = true; });
}

document.querySelectorAll("[data-grid]").forEach(grid);
document.querySelectorAll(".drawing").forEach(tips);
