// Colours of categories on the map, told apart by most who see colours differently (after Okabe and Ito), then more.

export const CATEGORIES = [
  "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#a58a00", "#7b3ff2", "#8c564b", "#17817f",
];
export const OUTCOMES = { right: "#0072b2", wrong: "#d55e00" };
export const PLAIN = "#0072b2";
export const NONE = "#8a8a8a";

export const category = (i) => CATEGORIES[i % CATEGORIES.length];

const parts = (css) => [1, 3, 5].map((at) => parseInt(css.slice(at, at + 2), 16));

// A colour as canvas pixels have it in a Uint32: little-endian, opacity first.
export function packed(css, opacity = 255) {
  const [red, green, blue] = parts(css);
  return ((opacity << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

// The colour at a share of a list of stops, 0 to 1.
export function ramp(stops, share) {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const [one, other] = [parts(stops[low]), parts(stops[low + 1])];
  return `rgb(${one.map((value, i) => Math.round(value + (other[i] - value) * (at - low))).join(" ")})`;
}
