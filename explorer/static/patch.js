// One patch: its pixels, each SR model beside them, what networks decided, how far to trust that, where they looked.

import { json, latest, ofPatch } from "./api.js";
import { card } from "./cards.js";
import { ramp } from "./colours.js";
import { compare } from "./compare.js";
import { el, number, picture, swatch } from "./dom.js";

const VERDICTS = {
  right: "✓ right", wrong: "✗ too many", missed: "✗ missed", absent: "rightly absent", unknown: "given; nobody knows",
  untaught: "not known to the network",
};
const SHOWN_FROM = 0.1; // probability below which an absent label is folded away

export class PatchPage {
  constructor(root, store, guarded) {
    this.root = root;
    this.guarded = guarded;
    this.store = store;
    this.colours = new Map(store.labels.map(({ label, colour }) => [label, colour]));
    this.show = latest(this.#show.bind(this));
    this.showClassifier = latest(this.#showClassifier.bind(this));
    this.showMaps = latest(this.#showMaps.bind(this));
  }

  async #show(signal, id, query) {
    const back = el("a", { href: `#/${query.toString() ? `?${query}` : ""}`, class: "back" }, "← All patches");
    this.root.replaceChildren(back, el("p", {}, "Reading the patch…"));
    let patch;
    try {
      patch = await json(ofPatch(id, ""), signal);
    } catch (error) {
      if (error.name !== "AbortError") this.root.replaceChildren(back, el("p", {}, "This patch cannot be shown."));
      throw error;
    }
    this.patch = patch;
    this.query = query;
    this.around = el("section", { "aria-label": "Around it", id: "around" });
    this.decided = el("section", { "aria-label": "What the network says", id: "decided" });
    this.looked = el("section", { "aria-label": "Where the network looks", id: "looked" });
    this.resolved = el("section", { "aria-label": "Super-resolution", id: "resolved" });
    const title = el("h2", { tabindex: "-1", class: "id" }, patch.patch_id);
    const ofBranches = this.store.branches.length ? [this.resolved, this.decided, this.looked] : [];
    this.root.replaceChildren(back, title, this.#facts(), this.#pixels(), ...ofBranches, this.around);
    title.focus({ preventScroll: true });
    await Promise.all([this.#neighbours(signal), this.#branches(query.get("branch"))]);
  }

  #facts() {
    const { patch } = this;
    const yes = (value) => (value === null ? null : value ? "yes" : "no");
    const place = patch.lat === null ? null : `${number(patch.lat, 4)}° N, ${number(patch.lon, 4)}° E`;
    const facts = {
      Labels: patch.labels === null ? "nobody labelled it" : null, Split: patch.split, Country: patch.country,
      Season: patch.season, Acquired: patch.acquired, Place: place, Tile: patch.tile, CRS: patch.crs,
      Snow: yes(patch.has_snow), Cloud: yes(patch.has_cloud), "Shard, row": `${patch.shard}, ${patch.row}`,
    };
    const entries = Object.entries(facts).filter(([, value]) => value !== null);
    return el("dl", { class: "facts" },
      patch.labels === null ? null : el("div", {}, el("dt", {}, "Labels"), el("dd", {}, patch.labels.length
        ? patch.labels.map((label) => this.#label(label)) : "none")),
      entries.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  }

  #label(label) {
    return el("span", { class: "label" }, swatch(this.colours.get(label)), label);
  }

  #pixels() {
    const { patch } = this;
    if (!patch.has_pixels) return el("p", {}, "The pixels of this patch are not in archive.zarr.");
    const figure = (what, title, note) => el("figure", {},
      picture(ofPatch(patch.patch_id, `/${what}.png`), `${title} of ${patch.patch_id}`), el("figcaption", {}, title,
        note ? el("span", { class: "note" }, ` ${note}`) : null));
    return el("section", { "aria-labelledby": "pixels-title", id: "pixels" }, el("h3", { id: "pixels-title" }, "Pixels"),
      el("div", { class: "figures" },
        figure("true-colour", "True colour"),
        patch.false_colour && figure("false-colour", "False colour", "near infrared, red, green: plants are red"),
        patch.land_cover && figure("land-cover", "Land cover", "the reference map, in the labels' colours")));
  }

  async #neighbours(signal) {
    if (!this.store.has_places) return;
    const { samples } = await json(ofPatch(this.patch.patch_id, "/neighbours"), signal);
    const link = new URLSearchParams(this.query);
    this.around.replaceChildren(el("h3", {}, "Around it"),
      samples.length ? el("ul", { class: "cards row" }, samples.map((sample) => card(sample, this.store, link)))
        : el("p", {}, "No other patch lies within 10 km."));
  }

  async #branches(wanted) {
    const { branches } = this.store;
    if (!branches.length) return;
    const first = branches.find((one) => one.branch === wanted) ?? branches[0];
    const classifiers = [...new Set(branches.map((one) => one.classifier))];
    this.classifier = el("select", { id: "classifier" }, classifiers.map((name) => el("option", { value: name }, name)));
    this.classifier.value = first.classifier;
    this.sr = el("select", { id: "sr" });
    this.classifier.addEventListener("change", this.guarded(() => this.showClassifier(this.sr.value)));
    this.sr.addEventListener("change", this.guarded(() => this.#showBranch(this.sr.value)));
    this.seed = el("span", { class: "note" });
    this.said = el("div");
    this.decided.replaceChildren(el("h3", {}, "What the network says"),
      el("div", { class: "bar" }, el("label", {}, "Network ", this.classifier), el("label", {}, "SR model ", this.sr), this.seed),
      this.said);
    await this.showClassifier(first.branch);
  }

  // Reads all SR models of a network, then shows them side by side.
  async #showClassifier(signal, wanted) {
    this.of = this.store.branches.filter((one) => one.classifier === this.classifier.value);
    const wantedSr = this.store.branches.find((one) => one.branch === wanted)?.sr;
    this.sr.replaceChildren(...this.of.map((one) => el("option", { value: one.branch }, one.sr)));
    this.sr.value = (this.of.find((one) => one.sr === wantedSr) ?? this.of[0]).branch;
    this.sr.disabled = true; // until its answers are there
    this.looked.hidden = this.resolved.hidden = true;
    this.seed.textContent = "";
    const { said } = this;
    said.replaceChildren(el("p", {}, "Reading what the network says…"));
    let answers;
    try {
      answers = await Promise.all(this.of.map((one) =>
        json(ofPatch(this.patch.patch_id, "/branch", { branch: one.branch }), signal)));
    } catch (error) {
      if (!signal.aborted) said.replaceChildren(el("p", {}, "What this network says cannot be shown."));
      throw error;
    }
    this.sr.disabled = false;
    this.answers = new Map(answers.map((answer) => [answer.branch, answer]));
    this.#showResolved();
    await this.#showBranch(this.sr.value);
  }

  #source(branch) {
    const isThere = this.answers.get(branch).why_no_picture === "";
    return isThere ? ofPatch(this.patch.patch_id, "/branch.png", { branch }) : ofPatch(this.patch.patch_id, "/input.png");
  }

  #showResolved() {
    const { patch } = this;
    const models = this.of.filter((one) => one.sr !== "none");
    this.resolved.hidden = !models.length || !patch.has_pixels;
    if (this.resolved.hidden) return;
    const before = { title: "input", alt: `${patch.patch_id}, the input`, source: ofPatch(patch.patch_id, "/input.png") };
    const figures = models.map((one) => {
      const why = this.answers.get(one.branch).why_no_picture;
      if (why) return el("figure", {}, el("p", { class: "missing" }, why), el("figcaption", {}, one.sr));
      return compare(before, { title: one.sr, alt: `${patch.patch_id}, ${one.sr}`, source: this.#source(one.branch) });
    });
    this.resolved.replaceChildren(el("h3", {}, "Super-resolution"),
      el("p", { class: "note" }, "Drag over a picture, or move its slider by the arrow keys: the input on the left, the SR model on the right."),
      el("div", { class: "figures" }, figures));
  }

  async #showBranch(branch) {
    this.branch = branch;
    this.#showDecisions();
    const { labels, methods } = this.answers.get(branch);
    this.looked.hidden = !methods.length || !this.patch.has_pixels;
    if (this.looked.hidden) return;
    const first = [...labels].sort((one, other) =>
      Number(this.#isTrue(other)) - Number(this.#isTrue(one)) || (other.prob ?? 0) - (one.prob ?? 0))[0];
    const kept = this.mapLabel?.value;
    this.mapLabel = el("select", { id: "map-label" }, labels.map(({ label }) => el("option", { value: label }, label)));
    this.mapLabel.value = labels.some(({ label }) => label === kept) && this.mapsOf === this.patch.patch_id ? kept
      : first?.label ?? "";
    this.mapsOf = this.patch.patch_id;
    this.opacity = el("input", { type: "range", id: "opacity", min: "0", max: "100", value: this.opacity?.value ?? "55" });
    this.maps = el("div", { class: "figures", id: "maps" });
    this.mapLabel.addEventListener("change", this.guarded(() => this.showMaps()));
    this.opacity.addEventListener("input", () => this.#fade());
    this.looked.replaceChildren(el("h3", {}, "Where the network looks"),
      el("div", { class: "bar" }, el("label", {}, "Label ", this.mapLabel), el("label", {}, "Opacity of the map ", this.opacity)),
      el("p", { class: "note" }, "Each map from 0 to its own maximum: ", this.#scale()), this.maps);
    await this.showMaps();
  }

  #isTrue({ verdict }) {
    return verdict === "right" || verdict === "missed" || verdict === "untaught";
  }

  #scale() {
    return el("span", { class: "scale", "aria-hidden": "true" }, this.store.map_colours.map((colour) => swatch(colour)));
  }

  async #showMaps(signal) {
    const { patch, branch, maps: shown } = this;
    const query = { branch, label: this.mapLabel.value };
    shown.style.minHeight = `${shown.offsetHeight}px`; // the page below stays where it is meanwhile
    shown.replaceChildren();
    let maps;
    try {
      ({ maps } = await json(ofPatch(patch.patch_id, "/maps", query), signal));
    } catch (error) {
      if (!signal.aborted) shown.replaceChildren(el("p", {}, "These maps cannot be shown."));
      throw error;
    } finally {
      if (!signal.aborted) shown.style.minHeight = "";
    }
    shown.replaceChildren(...maps.map(({ title, image, why_not: why }) => el("figure", {},
      el("div", { class: "stage" }, picture(this.#source(branch), `${patch.patch_id}, under the map`),
        image && picture(image, `${title} map of ${query.label}`, { class: "over map" })),
      el("figcaption", {}, title, why ? el("span", { class: "note" }, ` ${why}`) : null))));
    this.#fade();
  }

  #fade() {
    this.opacity.setAttribute("aria-valuetext", `${this.opacity.value} %`);
    for (const image of this.maps.querySelectorAll(".map")) image.style.opacity = this.opacity.value / 100;
  }

  #showDecisions() {
    const { labels, seed } = this.answers.get(this.branch);
    const scored = labels.some((one) => one.reliability !== null && one.reliability !== undefined);
    const of = new Map(this.of.map((one) => [one.branch,
      new Map(this.answers.get(one.branch).labels.map((row) => [row.label, row]))]));
    const shown = (row) => row.verdict !== "absent" || [...of.values()].some((rows) =>
      (rows.get(row.label)?.prob ?? 0) >= SHOWN_FROM);
    const line = (row) => this.#line(row, of, scored);
    const head = el("tr", {}, el("th", { scope: "col" }, "Label"), el("th", { scope: "col" }, "Truth"),
      this.of.map((one) => el("th", { scope: "col", class: one.branch === this.branch ? "chosen" : null }, one.sr)),
      scored && el("th", { scope: "col" }, "Reliability"), scored && el("th", { scope: "col" }, "Cluster of its map"));
    const table = (rows) => el("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Probabilities" },
      el("table", {}, el("thead", {}, head.cloneNode(true)), el("tbody", {}, rows.map(line))));
    const rest = labels.filter((row) => !shown(row));
    this.seed.textContent = `training seed ${seed}`;
    this.said.replaceChildren(...[
      labels.length ? table(labels.filter(shown)) : el("p", {}, "This branch did not see the patch."),
      rest.length ? el("details", {}, el("summary", {}, `${rest.length} more labels, all rightly absent`), table(rest)) : null,
    ].filter(Boolean));
  }

  #line(row, of, scored) {
    const truth = row.verdict === "unknown" ? "?" : this.#isTrue(row) ? "yes" : this.patch.labels === null ? "?" : "no";
    return el("tr", {}, el("th", { scope: "row" }, this.#label(row.label)), el("td", {}, truth),
      this.of.map((one) => this.#prob(of.get(one.branch).get(row.label), one.branch === this.branch)),
      scored && el("td", { class: "number" }, number(row.reliability)), scored && el("td", {}, this.#cluster(row)));
  }

  #prob(row, chosen) {
    if (!row) return el("td", {}, "–");
    const bar = el("span", { class: "bar-of", "aria-hidden": "true" });
    bar.style.width = `${100 * (row.prob ?? 0)}%`;
    return el("td", { class: chosen ? "prob chosen" : "prob" }, el("span", { class: "track" }, bar),
      el("span", { class: "number" }, number(row.prob, 3)), el("span", { class: `verdict ${row.verdict}` }, VERDICTS[row.verdict]));
  }

  #cluster({ cluster, of_cluster: about }) {
    if (cluster === null || cluster === undefined) return "none";
    if (!about) return `${cluster}`;
    const wrong = about.error_rate === null ? "no samples"
      : `${number(100 * about.error_rate, 1)} % of ${about.n.toLocaleString("en")} wrong`;
    return el("span", { class: "cluster" }, prototype(about, this.store.map_colours),
      `${cluster}: ${wrong}${about.flipped ? ", flipped" : ""}`);
  }
}

// The mean map of a cluster, a square a place.
function prototype({ prototype: values, height, width }, stops) {
  if (!values) return null;
  const canvas = el("canvas", { width: Number(width), height: Number(height), class: "prototype", role: "img",
    "aria-label": "the cluster's mean map" });
  const context = canvas.getContext("2d");
  values.forEach((value, i) => {
    context.fillStyle = ramp(stops, value);
    context.fillRect(i % width, Math.floor(i / width), 1, 1);
  });
  return canvas;
}
