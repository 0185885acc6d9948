// Filter, search and page the answers. Text is only inserted as text: no HTML is parsed.
"use strict";
(() => {
  const payload = document.getElementById("payload");
  if (!payload) return;
  const { fields, scores, badges, rows } = JSON.parse(payload.textContent);
  const column = Object.fromEntries(fields.map((name, index) => [name, index]));
  const form = document.querySelector(".controls");
  const table = document.getElementById("sides");
  const pages = document.querySelector(".pages");
  const status = document.querySelector(".status");
  const rowTemplate = document.getElementById("row").content.querySelector("tbody");
  const section = document.getElementById("answers");
  const ROWS_PER_PAGE = 20;
  const searchable = new Map();
  let page = 0;

  const words = (side) => (side ? side[0].map((part) => (typeof part === "string" ? part : part[0] === 1 ? part[1] : "")).join("") : "");

  function searchText(row) {
    if (!searchable.has(row)) {
      const texts = [row[column.prompt], row[column.reference] || "", ...row[column.sides].map(words)];
      texts.push(...row[column.sides].flatMap((side) => (side ? side[3] : [])));
      searchable.set(row, texts.join("\n").toLowerCase());
    }
    return searchable.get(row);
  }

  function matchingRows() {
    const filter = form.elements.filter.value;
    const query = form.elements.q.value.trim().toLowerCase();
    const matching = rows.filter((row) => (filter === "all" || (filter === "changed" ? row[column.changed] : row[column.outcome] === filter))
      && (!query || searchText(row).includes(query)));
    const sign = { gain: -1, loss: 1 }[form.elements.sort.value];
    return sign ? matching.sort((one, other) => sign * ((one[column.gain] || 0) - (other[column.gain] || 0))) : matching;
  }

  function element(tag, text, cssClass) {
    const node = document.createElement(tag);
    if (cssClass) node.className = cssClass;
    node.textContent = text;
    return node;
  }

  function fillSide(cell, side) {
    const [segments, values, note, more] = side || [[], [], "", []];
    cell.querySelector(".text").replaceChildren(...segments.map((part) => (typeof part === "string"
      ? document.createTextNode(part) : element(part[0] === 1 ? "mark" : "del", part[1]))));
    if (more.length) {
      const samples = element("details", "", "more");
      samples.append(element("summary", `${more.length} more samples`), ...more.map((text) => element("div", text, "text")));
      cell.querySelector(".text").after(samples);
    }
    const under = values.map((value, index) => {
      const score = element("span", "", "score");
      score.append(element("b", value), " " + scores[index]);
      return score;
    });
    if (note) under.unshift(element("span", note, "note"));
    cell.querySelector(".under").replaceChildren(...under);
  }

  function draw(row) {
    const body = rowTemplate.cloneNode(true);
    body.dataset.outcome = row[column.outcome];
    body.querySelector(".number").textContent = row[column.number];
    body.querySelector(".badge").textContent = badges[row[column.outcome]] || "";
    const prompt = body.querySelector(".asked .text");
    prompt.textContent = row[column.prompt];
    prompt.classList.toggle("long", row[column.prompt].length > 160);
    body.querySelector(".reference .text").textContent = row[column.reference] ?? "";
    body.querySelectorAll(".side").forEach((cell, index) => fillSide(cell, row[column.sides][index]));
    return body;
  }

  function show() {
    const matching = matchingRows();
    const last = Math.max(0, Math.ceil(matching.length / ROWS_PER_PAGE) - 1);
    page = Math.min(Math.max(page, 0), last);
    const start = page * ROWS_PER_PAGE;
    table.querySelectorAll("tbody").forEach((body) => body.remove());
    table.append(...matching.slice(start, start + ROWS_PER_PAGE).map(draw));
    const end = Math.min(start + ROWS_PER_PAGE, matching.length);
    status.textContent = matching.length ? `${start + 1} to ${end} of ${matching.length.toLocaleString("en")} rows` : "No row matches.";
    pages.hidden = last === 0;
    pages.querySelector("span").textContent = `page ${page + 1} of ${last + 1}`;
    pages.querySelectorAll("button").forEach((button) => {
      button.disabled = page + Number(button.value) < 0 || page + Number(button.value) > last;
    });
    section.classList.toggle("unmarked", !form.elements.marks.checked);
  }

  function saveState() {
    const state = new URLSearchParams();
    if (form.elements.filter.value !== "all") state.set("filter", form.elements.filter.value);
    if (form.elements.q.value) state.set("q", form.elements.q.value);
    if (form.elements.sort.value !== "row") state.set("sort", form.elements.sort.value);
    if (page) state.set("page", page + 1);
    const hash = state.toString() ? "#" + state : location.pathname + location.search;
    try { history.replaceState(null, "", hash); } catch { /* some viewers forbid it, and the page works without it */ }
  }

  function restoreState() {
    const state = new URLSearchParams(location.hash.slice(1));
    const known = [...form.elements.filter].map((input) => input.value);
    if (!["filter", "q", "sort", "page"].some((name) => state.has(name))) return;
    form.elements.filter.value = known.includes(state.get("filter")) ? state.get("filter") : "all";
    form.elements.q.value = state.get("q") || "";
    if (["gain", "loss"].includes(state.get("sort"))) form.elements.sort.value = state.get("sort");
    page = (parseInt(state.get("page"), 10) || 1) - 1;
    section.scrollIntoView();
  }

  function onChange() {
    page = 0;
    show();
    saveState();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", onChange);
  pages.addEventListener("click", (event) => {
    if (!event.target.value) return;
    page += Number(event.target.value);
    show();
    saveState();
    section.scrollIntoView();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      form.elements.q.focus();
    }
    if (event.key === "Escape" && document.activeElement === form.elements.q) {
      form.elements.q.value = "";
      onChange();
    }
  });
  window.addEventListener("hashchange", () => { restoreState(); show(); });
  form.hidden = false;
  restoreState();
  show();
})();
