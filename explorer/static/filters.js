// The form of filters: built of what the store has, and kept in the page's address.

import { el, swatch } from "./dom.js";

const OUTCOMES = [
  ["", "any"],
  ["right", "all labels right"],
  ["wrong", "any label wrong"],
  ["missed", "missed a label"],
  ["extra", "gave a label too many"],
];
const KEYS = [
  "label", "every", "label_in", "country", "season", "split", "q", "branch", "outcome", "reliability_min",
  "reliability_max",
];
const TYPING_MS = 250;

export const branchTitle = (branch, all) => {
  const alike = all.filter((other) => other.sr === branch.sr && other.classifier === branch.classifier);
  return `${branch.classifier} on ${branch.sr}${alike.length > 1 ? ` (${branch.config})` : ""}`;
};

export class FilterForm {
  constructor(form, store, changed) {
    this.form = form;
    this.store = store;
    this.changed = changed;
    this.counts = new Map();
    form.append(...this.#fields().filter(Boolean));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", (event) => this.#onChange(event));
    form.addEventListener("input", (event) => this.#onInput(event));
  }

  // The conditions as the service takes them.
  get query() {
    const query = new URLSearchParams();
    for (const [name, value] of new FormData(this.form)) {
      const text = String(value).trim();
      if (text && !(name === "label_in" && text === "truth")) query.append(name, text);
    }
    if (!query.has("label")) ["every", "label_in"].forEach((name) => query.delete(name));
    return query;
  }

  // Shows conditions from the page's address; those that this store does not know are left out.
  set query(query) {
    for (const field of this.form.elements) {
      if (!field.name) continue;
      const wanted = query.getAll(field.name);
      if (field.type === "checkbox") field.checked = wanted.includes(field.value);
      else if (field.tagName === "SELECT") {
        field.value = [...field.options].some((option) => option.value === wanted[0]) ? wanted[0] : field.options[0].value;
      } else field.value = wanted[0] ?? "";
    }
    this.#enable();
  }

  show(counts) {
    for (const [column, values] of Object.entries(counts)) {
      for (const [name, count] of Object.entries(values)) {
        const place = this.counts.get(`${column} ${name}`);
        if (place) place.textContent = count.toLocaleString("en");
      }
    }
  }

  #onChange(event) {
    if (event.target.type === "search" || event.target.type === "number") return;
    this.#enable();
    this.changed();
  }

  #onInput(event) {
    if (event.target.type !== "search" && event.target.type !== "number") return;
    clearTimeout(this.typing);
    this.typing = setTimeout(() => {
      if (this.form.checkValidity()) this.changed();
    }, TYPING_MS);
  }

  // What needs a network, or its reliability, can be used only where one is chosen that has it.
  #enable() {
    const field = this.form.elements;
    const chosen = this.store.branches.find((branch) => branch.branch === field.branch?.value);
    for (const name of ["outcome", "label_in"]) if (field[name]) field[name].disabled = !chosen;
    for (const name of ["reliability_min", "reliability_max"]) {
      if (field[name]) field[name].disabled = !chosen?.has_reliability;
    }
  }

  #fields() {
    const { store } = this;
    const labels = store.labels.map(({ label, colour }) => this.#check("label", label, swatch(colour)));
    const branches = store.branches.length > 0;
    const scored = store.branches.some((branch) => branch.has_reliability);
    return [
      el("label", { class: "field" }, "Patch id contains",
        el("input", { type: "search", name: "q", maxlength: "200", autocomplete: "off", spellcheck: "false" })),
      el("fieldset", {}, el("legend", {}, "Labels"),
        el("div", { class: "choices tall", tabindex: "0", role: "group", "aria-label": "Labels" }, labels),
        el("label", { class: "check" }, el("input", { type: "checkbox", name: "every", value: "true" }),
          "all of them at once"),
        branches && el("label", { class: "field" }, "Labels that are",
          this.#select("label_in", [["truth", "true"], ["predicted", "predicted by the network"]]))),
      ...["country", "season", "split"].map((column) => this.#choices(column, store[column])),
      branches && el("fieldset", {}, el("legend", {}, "Network"),
        el("label", { class: "field" }, "Network and SR model", this.#select("branch",
          [["", "none"], ...store.branches.map((one) => [one.branch, branchTitle(one, store.branches)])])),
        el("label", { class: "field" }, "It was", this.#select("outcome", OUTCOMES)),
        scored && el("div", { class: "pair" },
          el("label", { class: "field" }, "Reliability from", this.#share("reliability_min")),
          el("label", { class: "field" }, "to", this.#share("reliability_max"))),
        scored && el("p", { class: "note" }, "of the least reliable decision on the patch")),
      el("button", { type: "button", id: "reset", onclick: () => this.#reset() }, "Clear all filters"),
    ];
  }

  #reset() {
    this.query = new URLSearchParams();
    this.changed();
  }

  #choices(column, names) {
    if (names.length < 2) return null;
    const title = column[0].toUpperCase() + column.slice(1);
    return el("fieldset", {}, el("legend", {}, title),
      el("div", { class: "choices" }, names.map((name) => this.#check(column, name))));
  }

  #check(column, name, mark = null) {
    const count = el("span", { class: "count" });
    this.counts.set(`${column} ${name}`, count);
    return el("label", { class: "check" }, el("input", { type: "checkbox", name: column, value: name }), mark,
      el("span", { class: "name" }, name), count);
  }

  #select(name, options) {
    return el("select", { name }, options.map(([value, text]) => el("option", { value }, text)));
  }

  #share(name) {
    return el("input", { type: "number", name, min: "0", max: "1", step: "any" });
  }
}

// The conditions in an address, without what belongs to the page alone.
export function conditions(query) {
  const found = new URLSearchParams();
  for (const key of KEYS) for (const value of query.getAll(key)) found.append(key, value);
  return found;
}
