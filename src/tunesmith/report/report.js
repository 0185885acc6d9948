// Filters, searches and pages the answers. Text only ever becomes text: nothing here parses HTML.
"use strict";
(() => {
  const holder = document.getElementById("payload");
  if (!holder) return;
  const { fields, scores, badges, rows } = JSON.parse(holder.textContent);
  const at = Object.fromEntries(fields.map((name, index) => [name, index]));
  const form = document.querySelector(".controls");
  const table = document.getElementById("sides");
  const pages = document.querySelector(".pages");
  const status = document.querySelector(".status");
  const pattern = document.getElementById("row").content.querySelector("tbody");
  const section = document.getElementById("answers");
  const ROWS_A_PAGE = 20;
  const searchable = new Map();
  let page = 0;

  const words = (side) => (side ? side[0].map((part) => (typeof part === "string" ? part : part[0] === 1 ? part[1] : "")).join("") : "");

  function haystack(row) {
    if (!searchable.has(row)) {
      const texts = [row[at.prompt], row[at.reference] || "", words(row[at.base]), words(row[at.tuned])];
      searchable.set(row, texts.join("\n").toLowerCase());
    }
    return searchable.get(row);
  }

  function chosen() {
    const filter = form.elements.filter.value;
    const query = form.elements.q.value.trim().toLowerCase();
    const found = rows.filter((row) => (filter === "all" || (filter === "changed" ? row[at.changed] : row[at.outcome] === filter))
      && (!query || haystack(row).includes(query)));
    const sign = { gain: -1, loss: 1 }[form.elements.sort.value];
    return sign ? found.sort((one, other) => sign * ((one[at.gain] || 0) - (other[at.gain] || 0))) : found;
  }

  function element(tag, text, kind) {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    made.textContent = text;
    return made;
  }

  function fillSide(cell, side) {
    const [segments, values, note] = side || [[], [], ""];
    cell.querySelector(".text").replaceChildren(...segments.map((part) => (typeof part === "string"
      ? document.createTextNode(part) : element(part[0] === 1 ? "mark" : "del", part[1]))));
    const under = values.map((value, index) => {
      const score = element("span", "", "score");
      score.append(element("b", value), " " + scores[index]);
      return score;
    });
    if (note) under.unshift(element("span", note, "note"));
    cell.querySelector(".under").replaceChildren(...under);
  }

  function draw(row) {
    const body = pattern.cloneNode(true);
    body.dataset.outcome = row[at.outcome];
    body.querySelector(".number").textContent = row[at.number];
    body.querySelector(".badge").textContent = badges[row[at.outcome]] || "";
    const prompt = body.querySelector(".asked .text");
    prompt.textContent = row[at.prompt];
    prompt.classList.toggle("long", row[at.prompt].length > 160);
    body.querySelector(".reference .text").textContent = row[at.reference] ?? "";
    fillSide(body.querySelector(".base"), row[at.base]);
    fillSide(body.querySelector(".tuned"), row[at.tuned]);
    return body;
  }

  function show() {
    const found = chosen();
    const last = Math.max(0, Math.ceil(found.length / ROWS_A_PAGE) - 1);
    page = Math.min(Math.max(page, 0), last);
    const start = page * ROWS_A_PAGE;
    table.querySelectorAll("tbody").forEach((body) => body.remove());
    table.append(...found.slice(start, start + ROWS_A_PAGE).map(draw));
    const end = Math.min(start + ROWS_A_PAGE, found.length);
    status.textContent = found.length ? `${start + 1} to ${end} of ${found.length.toLocaleString("en")} rows` : "No row matches.";
    pages.hidden = last === 0;
    pages.querySelector("span").textContent = `page ${page + 1} of ${last + 1}`;
    pages.querySelectorAll("button").forEach((button) => {
      button.disabled = page + Number(button.value) < 0 || page + Number(button.value) > last;
    });
    section.classList.toggle("unmarked", !form.elements.marks.checked);
  }

  function remember() {
    const state = new URLSearchParams();
    if (form.elements.filter.value !== "all") state.set("filter", form.elements.filter.value);
    if (form.elements.q.value) state.set("q", form.elements.q.value);
    if (form.elements.sort.value !== "row") state.set("sort", form.elements.sort.value);
    if (page) state.set("page", page + 1);
    const hash = state.toString() ? "#" + state : location.pathname + location.search;
    try { history.replaceState(null, "", hash); } catch { /* some viewers forbid it; the page works without */ }
  }

  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    const known = [...form.elements.filter].map((input) => input.value);
    if (!["filter", "q", "sort", "page"].some((name) => state.has(name))) return;
    form.elements.filter.value = known.includes(state.get("filter")) ? state.get("filter") : "all";
    form.elements.q.value = state.get("q") || "";
    if (["gain", "loss"].includes(state.get("sort"))) form.elements.sort.value = state.get("sort");
    page = (parseInt(state.get("page"), 10) || 1) - 1;
    section.scrollIntoView();
  }

  function changed() {
    page = 0;
    show();
    remember();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", changed);
  pages.addEventListener("click", (event) => {
    if (!event.target.value) return;
    page += Number(event.target.value);
    show();
    remember();
    section.scrollIntoView();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      form.elements.q.focus();
    }
    if (event.key === "Escape" && document.activeElement === form.elements.q) {
      form.elements.q.value = "";
      changed();
    }
  });
  window.addEventListener("hashchange", () => { recall(); show(); });
  form.hidden = false;
  recall();
  show();
})();
