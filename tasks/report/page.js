"use strict";
// Nothing on the page needs a script to be read: this sorts, tells values, picks patches, and turns the lights on and off.

const root = document.documentElement;

// ---- light and dark ----
{
  const KEY = "superscene-theme";
  const button = document.getElementById("theme");
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  const shown = () => root.dataset.theme ?? (prefers.matches ? "dark" : "light");
  const tell = () => { button.textContent = shown() === "dark" ? "Light colours" : "Dark colours"; };
  try {
    const kept = localStorage.getItem(KEY);
    if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  } catch { /* a browser that keeps nothing */ }
  button.addEventListener("click", () => {
    root.dataset.theme = shown() === "dark" ? "light" : "dark";
    try { localStorage.setItem(KEY, root.dataset.theme); } catch { /* likewise */ }
    tell();
  });
  prefers.addEventListener("change", tell);
  tell();
  button.hidden = false;
}

// ---- values on hover and on focus ----
// Without a script the browser shows titles by itself; with one they are told by the keyboard and on touch too.
for (const element of document.querySelectorAll("[title]")) {
  element.dataset.tip = element.title;
  element.removeAttribute("title");
}
for (const title of document.querySelectorAll("svg.chart title")) {
  title.parentElement.dataset.tip = title.textContent;
  title.remove();
}

const tip = document.createElement("div");
tip.id = "tip";
tip.setAttribute("role", "status");
tip.hidden = true;
document.body.append(tip);

function showTip(text, x, top, bottom) {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(Math.max(x - width / 2, 6), root.clientWidth - width - 6);
  tip.style.left = `${left}px`;
  tip.style.top = `${top - height - 10 > 0 ? top - height - 10 : bottom + 12}px`;
}

let unmark = () => {};
function hideTip() {
  tip.hidden = true;
  unmark();
  unmark = () => {};
}

function tellOf(element, text) {
  const box = element.getBoundingClientRect();
  showTip(text, box.left + box.width / 2, box.top, box.bottom);
}

// A point of a chart: its words, where it is on the screen, and how it is marked.
function pointOfElement(element, text) {
  const mark = () => {
    element.classList.add("spot");
    return () => element.classList.remove("spot");
  };
  return { text, box: () => element.getBoundingClientRect(), mark };
}

function pointOfDrawing(svg, x, y, text) {
  const box = () => {
    const { x: left, y: top } = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
    return new DOMRect(left, top - 4, 0, 8);
  };
  const mark = () => {
    const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    ring.setAttribute("class", "spot");
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    ring.setAttribute("r", 5);
    svg.append(ring);
    return () => ring.remove();
  };
  return { text, box, mark };
}

// Series of points: arrow keys go along one, and from one to the next.
function seriesOfDrawing(svg) {
  const lines = [...svg.querySelectorAll("polyline[data-y]")];
  if (lines.length) {
    return lines.map((line) => {
      const [xs, ys] = [line.dataset.x.split(" "), line.dataset.y.split(" ")];
      return line.getAttribute("points").split(" ").map((point, i) => {
        const [x, y] = point.split(",").map(Number);
        return pointOfDrawing(svg, x, y, `${line.dataset.tip}: ${svg.dataset.x} ${xs[i]}, ${ys[i]}`);
      });
    });
  }
  const groups = new Map();
  for (const mark of svg.querySelectorAll("circle[data-tip], rect[data-tip]")) {
    const kind = mark.getAttribute("class");
    const { x, y, width, height } = mark.getBBox();
    if (!groups.has(kind)) groups.set(kind, []);
    groups.get(kind).push(pointOfDrawing(svg, x + width / 2, y + height / 2, mark.dataset.tip));
  }
  return [...groups.values()];
}

function seriesOfTable(table) {
  const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent.trim());
  return [...table.tBodies].flatMap((body) => [...body.rows]).map((row) =>
    [...row.cells].filter((cell) => cell.classList.contains("heat")).map((cell) => {
      const value = cell.textContent.replace(/\s+/g, " ").trim();
      const rest = cell.dataset.tip ? `, ${cell.dataset.tip}` : "";
      return pointOfElement(cell, `${row.cells[0].textContent.trim()}, ${heads[cell.cellIndex]}: ${value}${rest}`);
    }),
  ).filter((series) => series.length);
}

function seriesOfTracks(forest) {
  return [...forest.querySelectorAll(".track")]
    .map((track) => [...track.querySelectorAll("[data-tip]")].map((mark) => pointOfElement(mark, mark.dataset.tip)))
    .filter((series) => series.length);
}

// Give a chart its keys and its pointer; `series` is asked anew each time, for tables are sorted.
function tellValues(chart, series, reach) {
  let at = [0, 0];
  const show = (point) => {
    hideTip();
    unmark = point.mark();
    const box = point.box();
    showTip(point.text, box.left + box.width / 2, box.top, box.bottom);
  };
  const go = (line, place) => {
    const all = series();
    line = Math.min(Math.max(line, 0), all.length - 1);
    place = Math.min(Math.max(place, 0), all[line].length - 1);
    at = [line, place];
    const point = all[line][place];
    const box = point.box();
    const region = chart.getBoundingClientRect();
    if (chart.scrollWidth > chart.clientWidth) chart.scrollLeft += box.left + box.width / 2 - region.left - region.width / 2;
    show(point);
  };
  chart.addEventListener("keydown", (event) => {
    const [line, place] = at;
    const steps = {
      ArrowRight: [line, place + 1], ArrowLeft: [line, place - 1], ArrowDown: [line + 1, place], ArrowUp: [line - 1, place],
      Home: [line, 0], End: [line, Infinity],
    };
    if (event.target !== chart || event.ctrlKey || event.metaKey || event.altKey || !(event.key in steps)) return;
    event.preventDefault();
    go(...(tip.hidden ? at : steps[event.key]));
  });
  chart.addEventListener("focus", () => { if (chart.matches(":focus-visible")) go(...at); });
  chart.addEventListener("blur", hideTip);
  const near = (event) => {
    let best = null;
    let least = reach;
    for (const point of series().flat()) {
      const box = point.box();
      const across = Math.max(box.left - event.clientX, 0, event.clientX - box.right);
      const up = Math.max(box.top - event.clientY, 0, event.clientY - box.bottom);
      const distance = Math.hypot(across, up);
      if (distance < least) [best, least] = [point, distance];
    }
    if (best) show(best);
    else if (document.activeElement !== chart) hideTip();
  };
  chart.addEventListener("pointermove", near);
  chart.addEventListener("pointerdown", near);
  chart.addEventListener("pointerleave", hideTip);
}

const KEYS = "Arrow keys go from value to value.";
for (const svg of document.querySelectorAll("svg.chart")) {
  const series = seriesOfDrawing(svg);
  if (!series.length) continue;
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("role", "application");
  svg.setAttribute("aria-roledescription", "chart");
  svg.setAttribute("aria-label", `${svg.getAttribute("aria-label")}. ${KEYS}`);
  tellValues(svg, () => series, 60);
}
for (const table of document.querySelectorAll("table.heat-map")) {
  const region = table.closest(".scroll");
  region.setAttribute("aria-label", `${region.getAttribute("aria-label")}. ${KEYS}`);
  tellValues(region, () => seriesOfTable(table), 1);
}
for (const forest of document.querySelectorAll(".forest")) {
  const series = seriesOfTracks(forest);
  if (!series.length) continue;
  forest.setAttribute("tabindex", "0");
  forest.setAttribute("role", "group");
  forest.setAttribute("aria-label", `${forest.dataset.label}. ${KEYS}`);
  tellValues(forest, () => series, 8);
}

const charts = "svg.chart, .heat-map, .forest";
const hinted = (target) => (target instanceof Element && !target.closest(charts) ? target.closest("[data-tip]") : null);
document.addEventListener("pointerover", (event) => {
  const element = hinted(event.target);
  if (element) tellOf(element, element.dataset.tip);
});
document.addEventListener("pointerout", (event) => { if (hinted(event.target)) hideTip(); });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
addEventListener("scroll", () => { if (!tip.hidden && !document.activeElement.matches("svg.chart, .scroll, .forest")) hideTip(); });

// ---- sorting ----
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    if (head.dataset.tip) {
      button.setAttribute("aria-description", head.dataset.tip);
      button.addEventListener("focus", () => { if (button.matches(":focus-visible")) tellOf(button, head.dataset.tip); });
      button.addEventListener("blur", hideTip);
    }
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const body of table.tBodies) sort(body, column, down);
    });
  });
}

function sort(body, column, down) {
  const units = []; // a row, and those that belong under it
  for (const row of body.rows) {
    if (row.classList.contains("minus") && units.length) units.at(-1).push(row);
    else units.push([row]);
  }
  const key = ([row]) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
  units.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "–" || y === "–") return (x === "–") - (y === "–");
    const numeric = Number(x) - Number(y);
    return (Number.isNaN(numeric) ? x.localeCompare(y) : numeric) * (down ? -1 : 1);
  });
  for (const row of body.rows) row.classList.remove("group");
  body.append(...units.flat());
}

// ---- the gallery: one patch at a time ----
{
  const cards = [...document.querySelectorAll("#gallery > .card")];
  const picker = document.getElementById("picker");
  if (cards.length > 1) {
    const all = document.createElement("button");
    let shown = 0;
    let whole = false;
    const choose = (index, focus) => {
      shown = (index + cards.length) % cards.length;
      whole = false;
      tellChoice();
      if (focus) thumbs[shown].focus();
    };
    const thumbs = cards.map((card, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "thumb";
      const name = card.querySelector("h3").textContent;
      button.setAttribute("aria-label", `Patch ${i + 1} of ${cards.length}: ${name}`);
      button.dataset.tip = name;
      const picture = card.querySelector("img");
      if (picture) {
        const small = document.createElement("img");
        small.src = picture.src;
        small.alt = "";
        button.append(small);
      } else button.textContent = i + 1;
      button.addEventListener("click", () => choose(i, false));
      picker.append(button);
      return button;
    });
    all.type = "button";
    all.className = "plain";
    all.textContent = "All patches";
    all.addEventListener("click", () => { whole = !whole; tellChoice(); });
    picker.append(all);
    picker.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: shown + 1, ArrowLeft: shown - 1, Home: 0, End: cards.length - 1 };
      if (!event.target.matches(".thumb") || !(event.key in steps)) return;
      event.preventDefault();
      choose(steps[event.key], true);
    });
    const tellChoice = () => {
      cards.forEach((card, i) => { card.hidden = !whole && i !== shown; });
      thumbs.forEach((thumb, i) => thumb.setAttribute("aria-pressed", String(!whole && i === shown)));
      all.setAttribute("aria-pressed", String(whole));
    };
    tellChoice();
    picker.hidden = false;
  }
}

// ---- what it costs ----
for (const input of document.querySelectorAll("input[data-kind]")) {
  input.addEventListener("input", () => {
    const price = input.value === "" ? NaN : input.valueAsNumber;
    for (const cell of document.querySelectorAll("[data-hours]")) {
      if (cell.dataset.kind !== input.dataset.kind) continue;
      const cost = price * Number(cell.dataset.hours) * Number(cell.dataset.times ?? 1);
      cell.textContent = Number.isFinite(cost) && price >= 0 ? cost.toLocaleString("en", { maximumSignificantDigits: 3 }) : "–";
    }
  });
}

// ---- on paper everything is shown ----
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  for (const card of document.querySelectorAll("#gallery > .card")) card.hidden = false;
});
