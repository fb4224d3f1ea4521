// The page: one store, browsed by map, filters and samples, or one patch of it. Where it is, its address says.

import { bytes, json, latest } from "./api.js";
import { card } from "./cards.js";
import { el } from "./dom.js";
import { FilterForm, conditions } from "./filters.js";
import { PatchMap } from "./map.js";
import { PatchPage } from "./patch.js";

const PER_PAGE = 48;
const BOX = ["west", "south", "east", "north"];
const $ = (id) => document.getElementById(id);

const tell = (text) => ($("status").textContent = text);
const guarded = (work) => async (...given) => {
  tell("");
  try {
    return await work(...given);
  } catch (error) {
    tell(`${error.message}.`);
    return undefined;
  }
};

function where() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  const patch = path.match(/^\/patch\/(.+)$/);
  return { patch: patch ? decodeURIComponent(patch[1]) : null, query: new URLSearchParams(query) };
}

class Browser {
  constructor(store) {
    this.store = store;
    this.form = new FilterForm($("filters"), store, () => this.go({ page: null }));
    this.map = null;
    this.shown = null;
    this.boxShown = null; // of an address, where the map has not been moved away from it
    this.scroll = 0;
    $("order").addEventListener("change", () => this.go({ page: null }));
    $("in-view").addEventListener("change", () => this.go({ page: null }));
    $("previous").addEventListener("click", () => this.go({ page: this.page - 1 }));
    $("next").addEventListener("click", () => this.go({ page: this.page + 1 }));
    this.list = guarded(latest((signal) => this.#list(signal)));
  }

  // Adds the map, once the patches are listed: of half a million it takes longer.
  async addMap() {
    if (!this.store.has_places) return;
    const centres = await bytes("/api/centres");
    this.map = new PatchMap(this.store, centres, {
      query: () => conditions(this.query),
      moved: () => {
        this.boxShown = null;
        if ($("in-view").checked && !$("browse").hidden) this.go({ page: null }, true);
      },
      picked: guarded((place) => this.#pick(place)),
      guarded,
    });
    this.#look(where().query);
    if (this.query) await this.#select();
    $("map").dataset.drawn = "";
  }

  get page() {
    return Math.max(1, Number.parseInt(this.query.get("page") ?? "1", 10) || 1);
  }

  // Goes to the address of what the controls say now.
  go({ page }, replace = false) {
    const query = this.form.query;
    if ($("order").value !== "shuffled") query.set("order", $("order").value);
    if ($("in-view").checked) this.#box.forEach((value, i) => query.set(BOX[i], value));
    if (page && page > 1) query.set("page", page);
    const address = `#/${query.toString() ? `?${query}` : ""}`;
    if (replace) history.replaceState(null, "", address);
    else history.pushState(null, "", address);
    this.show(query);
  }

  // What the list is to keep to: the address's box for as long as the map shows it, else what the map shows by now.
  get #box() {
    const inAddress = BOX.map((name) => this.query.get(name));
    if (!this.map) return inAddress.includes(null) ? [] : inAddress;
    if (inAddress.join() === this.boxShown) return inAddress;
    const box = this.map.box.map((value) => value.toFixed(5));
    this.boxShown = box.join();
    return box;
  }

  // Moves the map to the address's box, unless it is there.
  #look(query) {
    const box = BOX.map((name) => query.get(name));
    if (!this.map || box.includes(null) || box.join() === this.boxShown) return;
    if (!box.every((value) => Number.isFinite(Number(value)))) return;
    this.map.lookAt(box.map(Number));
    this.boxShown = box.join();
  }

  async show(query) {
    this.query = query;
    this.form.query = query;
    const branch = this.store.branches.find((one) => one.branch === query.get("branch"));
    const byReliability = $("order").querySelector("[value=reliability]");
    byReliability.disabled = !branch?.has_reliability;
    const wanted = query.get("order") ?? "shuffled";
    $("order").value = wanted === "reliability" && byReliability.disabled ? "shuffled" : wanted;
    $("in-view").checked = query.has("west");
    this.#look(query);
    const address = query.toString();
    if (this.shown === address) return;
    this.shown = address;
    tell("");
    await Promise.all([this.list(), this.map && guarded(() => this.#select())()]);
  }

  #select() {
    const branch = this.store.branches.find((one) => one.branch === this.query.get("branch"));
    return this.map.select(conditions(this.query), branch);
  }

  async #list(signal) {
    const query = conditions(this.query);
    if (this.query.has("west")) {
      for (const name of BOX) query.set(name, this.query.get(name) ?? "");
    }
    const asked = new URLSearchParams(query);
    asked.set("order", $("order").value);
    asked.set("offset", (this.page - 1) * PER_PAGE);
    asked.set("limit", PER_PAGE);
    $("grid").setAttribute("aria-busy", "true");
    const found = await json(`/api/samples?${asked}`, signal).finally(() => $("grid").removeAttribute("aria-busy"));
    this.form.show(found.counts);
    $("total").textContent = `${found.total.toLocaleString("en")} of ${this.store.n.toLocaleString("en")}`;
    const pages = Math.max(1, Math.ceil(found.total / PER_PAGE));
    $("page").textContent = `page ${this.page} of ${pages.toLocaleString("en")}`;
    $("previous").disabled = this.page <= 1;
    $("next").disabled = this.page >= pages;
    const cards = found.samples.map((sample) => card(sample, this.store, this.query));
    $("grid").replaceChildren(...(cards.length ? cards : [el("li", { class: "none" }, "No patch fits.")]));
  }

  async #pick({ lon, lat, radiusKm }) {
    const query = conditions(this.query);
    query.set("lon", lon.toFixed(5));
    query.set("lat", lat.toFixed(5));
    query.set("radius_km", Math.min(radiusKm, 100).toFixed(3));
    const { samples } = await json(`/api/near?${query}`);
    const title = samples.length ? `The ${samples.length} nearest patches here` : "No patch here";
    $("here").hidden = false;
    $("here").replaceChildren(
      el("div", { class: "bar" }, el("h3", { tabindex: "-1" }, samples.length === 1 ? "The patch here" : title),
        el("button", { type: "button", onclick: () => ($("here").hidden = true) }, "Close")),
      el("ul", { class: "cards row" }, samples.map((sample) => card(sample, this.store, this.query))));
    $("here").querySelector("h3").focus({ preventScroll: true });
  }
}

async function start() {
  const store = await json("/api/store");
  document.title = `${store.name} · superscene explorer`;
  const run = store.run ? `run ${store.run.run_id}, ${store.run.status}` : "no run has ended here: patches alone";
  $("about").textContent = `${store.name}: ${store.n.toLocaleString("en")} patches; ${run}`;
  const browser = new Browser(store);
  const patch = new PatchPage($("patch"), store, guarded);
  if (matchMedia("(max-width: 50rem)").matches) $("filter-box").open = false;
  $("map-section").hidden = !store.has_places;

  const route = guarded(async () => {
    const { patch: id, query } = where();
    if (id === null) {
      $("patch").hidden = true;
      $("browse").hidden = false;
      document.title = `${store.name} · superscene explorer`;
      browser.map?.resize();
      await browser.show(query);
      window.scrollTo(0, browser.scroll);
    } else {
      if (!$("browse").hidden) browser.scroll = window.scrollY;
      $("browse").hidden = true;
      $("patch").hidden = false;
      window.scrollTo(0, 0);
      document.title = `${id} · ${store.name}`;
      tell("");
      await patch.show(id, query);
    }
  });
  window.addEventListener("popstate", route);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("patch").hidden) location.hash = `#/${where().query.toString() ? `?${where().query}` : ""}`;
  });
  $("skip").addEventListener("click", (event) => {
    event.preventDefault();
    ($("browse").hidden ? $("patch") : $("main")).focus();
  });
  await route();
  await browser.addMap();
}

guarded(start)();
