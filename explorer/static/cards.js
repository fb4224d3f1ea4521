// A patch as a small picture with its name, labels and, where a network is chosen, how that did.

import { ofPatch } from "./api.js";
import { el, number, picture, swatch } from "./dom.js";

const WINDS = ["N", "NE", "E", "SE", "S", "SW", "W", "NW"];

export function card(sample, store, query) {
  const colours = new Map(store.labels.map(({ label, colour }) => [label, colour]));
  const href = `#/patch/${encodeURIComponent(sample.patch_id)}${query.toString() ? `?${query}` : ""}`;
  const image = sample.has_pixels
    ? picture(ofPatch(sample.patch_id, "/true-colour.png"), "", { loading: "lazy", width: "120", height: "120" })
    : el("span", { class: "missing" }, "pixels not here");
  return el("li", {},
    el("a", { href },
      image,
      el("span", { class: "id" }, sample.patch_id),
      distance(sample),
      el("span", { class: "facts" }, [sample.country, sample.season, sample.split].filter(Boolean).join(" · ")),
      el("span", { class: "labels" }, sample.labels === null ? "not labelled"
        : sample.labels.map((label) => el("span", { class: "label" }, swatch(colours.get(label)), label))),
      verdict(sample)));
}

function distance({ distance_km: km, bearing_deg: bearing }) {
  if (km === undefined) return null;
  const text = km < 0.05 ? "the same ground" : `${number(km, 1)} km ${WINDS[Math.round(bearing / 45) % 8]}`;
  return el("span", { class: "facts" }, text);
}

function verdict({ outcomes, predicted, reliability }) {
  if (outcomes === undefined) return null;
  const said = predicted === null ? "not predicted" : outcomes.includes("right") ? "✓ right"
    : outcomes.includes("wrong") ? `✗ wrong${outcomes.includes("missed") ? ", missed" : ""}${
      outcomes.includes("extra") ? ", too many" : ""}` : "nobody knows";
  return el("span", { class: "verdict" }, said, reliability === null ? null : `, reliability ${number(reliability)}`);
}
