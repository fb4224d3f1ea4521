// The map: every patch a point, where it is close a footprint, in Web Mercator on a canvas; tiles below it on request.

import { bytes, latest } from "./api.js";
import { CATEGORIES, NONE, OUTCOMES, PLAIN, category, packed, ramp } from "./colours.js";
import { el, swatch } from "./dom.js";

const EARTH_KM = 40075;
const PATCH_KM = 1.2;
const FOOTPRINT_PX = 7; // from this width on, corners are fetched
const FOOTPRINT_BYTES = 36;
const NO_COLOUR = 255;
const DEGREES = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30]; // between lines of the map
const STEPS = 10; // of reliability
const CROWD = 20000; // patches from which on points are small
const TILE_PX = 256;
const MAX_SCALE = 2 ** 26;
const SETTLED_MS = 200;

const mercatorX = (lon) => (lon + 180) / 360;
const mercatorY = (lat) => 0.5 - Math.log(Math.tan(Math.PI / 4 + (lat * Math.PI) / 360)) / (2 * Math.PI);
const longitude = (x) => x * 360 - 180;
const latitude = (y) => (Math.atan(Math.exp((0.5 - y) * 2 * Math.PI)) * 360) / Math.PI - 90;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export class PatchMap {
  constructor(store, centres, { query, moved, picked, guarded }) {
    Object.assign(this, { store, query, moved, picked, guarded });
    this.points = document.getElementById("map-points");
    this.below = document.getElementById("map-tiles");
    const places = new Float32Array(centres);
    this.x = new Float64Array(store.n);
    this.y = new Float64Array(store.n);
    for (let i = 0; i < store.n; i++) {
      this.x[i] = mercatorX(places[2 * i]);
      this.y[i] = mercatorY(places[2 * i + 1]);
    }
    this.selected = new Uint8Array(Math.ceil(store.n / 8)).fill(255);
    this.codes = null;
    this.codesBy = "";
    this.polygons = null;
    this.tiles = new Map();
    this.view = { x: 0.5, y: 0.5, scale: 256 };
    this.pointers = new Map();
    this.colourBy = document.getElementById("colour-by");
    this.fetchSelection = latest(this.#fetchSelection.bind(this));
    this.fetchColours = latest(this.#fetchColours.bind(this));
    this.fetchPolygons = latest(this.#fetchPolygons.bind(this));
    this.framed = null;
    this.#listen();
    this.resize();
    this.fit();
  }

  // Shows which patches fit, and their colours.
  async select(query, branch) {
    this.#offer(branch);
    const [wanted, colours] = [query.toString(), this.#colourQuery(query)];
    const work = [];
    if (wanted !== this.selectionAsked) work.push(this.fetchSelection(wanted));
    if (colours !== this.coloursAsked) work.push(this.fetchColours(colours));
    const failed = (await Promise.allSettled(work)).find(({ status }) => status === "rejected");
    this.draw();
    this.#settle();
    if (failed) throw failed.reason;
  }

  resize() {
    const { width, height } = this.points.parentElement.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    this.ratio = ratio;
    if (!width) return;
    for (const canvas of [this.points, this.below]) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    if (this.framed) this.#frame(this.framed, false);
    else this.draw();
  }

  // Shows all patches that have a place.
  fit(byUser = false) {
    let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < this.store.n; i++) {
      if (!(this.x[i] >= 0)) continue;
      left = Math.min(left, this.x[i]);
      right = Math.max(right, this.x[i]);
      top = Math.min(top, this.y[i]);
      bottom = Math.max(bottom, this.y[i]);
    }
    this.#frame([left, right, top, bottom, 0.92], byUser);
  }

  // Shows a box, degrees, as `box` tells it: all of it, and what else there is room for.
  lookAt([west, south, east, north]) {
    this.#frame([mercatorX(west), mercatorX(east), mercatorY(north), mercatorY(south), 1], false);
  }

  // A map that is hidden, since the address is a patch's, has no size yet: what it is to show waits until it has.
  #frame(wanted, byUser) {
    const isHidden = !this.points.parentElement.clientWidth;
    this.framed = isHidden ? wanted : null;
    if (isHidden) return;
    const [left, right, top, bottom, share] = wanted;
    const { width, height } = this.points;
    const scale = share * Math.min(width / Math.max(right - left, 1e-6), height / Math.max(bottom - top, 1e-6));
    this.#look((left + right) / 2, (top + bottom) / 2, scale, byUser);
  }

  // West, south, east and north of what is shown, degrees.
  get box() {
    const { x, y, scale } = this.view;
    const [w, h] = [this.points.width / 2 / scale, this.points.height / 2 / scale];
    return [
      clamp(longitude(x - w), -180, 180), clamp(latitude(y + h), -90, 90),
      clamp(longitude(x + w), -180, 180), clamp(latitude(y - h), -90, 90),
    ];
  }

  // Width of a patch on the screen, in canvas pixels.
  get patchPx() {
    return ((PATCH_KM / EARTH_KM) * this.view.scale) / Math.cos((latitude(this.view.y) * Math.PI) / 180);
  }

  draw() {
    const { width, height } = this.points;
    if (!width || !height) return;
    const context = this.points.getContext("2d");
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const close = this.patchPx >= FOOTPRINT_PX * this.ratio && this.polygons !== null;
    const isWhole = close && this.polygons.byteLength < FOOTPRINT_BYTES * this.store.most_footprints;
    const colours = this.#palette();
    const size = clamp(Math.round(this.patchPx), Math.ceil(this.ratio), 64);
    this.#plot(pixels, width, height, Math.max(1, Math.ceil(this.ratio)), () => colours.rest, 0);
    if (!isWhole) this.#plot(pixels, width, height, Math.max(size, Math.ceil((this.store.n > CROWD ? 1.5 : 4) * this.ratio)), colours.of, 1);
    context.putImageData(image, 0, 0);
    if (close) this.#outline(context, colours.css);
    if (this.keys) this.#cross(context, width, height);
    this.#tiles();
  }

  #plot(pixels, width, height, size, colour, wanted) {
    const { x, y, scale } = this.view;
    const [left, top] = [width / 2 - x * scale - size / 2, height / 2 - y * scale - size / 2];
    for (let i = 0; i < this.store.n; i++) {
      if (((this.selected[i >> 3] >> (i & 7)) & 1) !== wanted) continue;
      const column = Math.round(this.x[i] * scale + left);
      const row = Math.round(this.y[i] * scale + top);
      if (!(column > -size && column < width && row > -size && row < height)) continue; // NaN without a place
      const value = colour(i);
      const [end, last] = [Math.min(column + size, width), Math.min(row + size, height)];
      for (let r = Math.max(row, 0); r < last; r++) {
        for (let c = Math.max(column, 0); c < end; c++) pixels[r * width + c] = value;
      }
    }
  }

  #outline(context, css) {
    const { x, y, scale } = this.view;
    const { width, height } = this.points;
    context.lineWidth = 1.5 * this.ratio;
    const view = new DataView(this.polygons);
    for (let at = 0; at + FOOTPRINT_BYTES <= view.byteLength; at += FOOTPRINT_BYTES) {
      const colour = css(view.getUint32(at, true));
      context.beginPath();
      for (let corner = 0; corner < 4; corner++) {
        const lon = view.getFloat32(at + 4 + 8 * corner, true);
        const lat = view.getFloat32(at + 8 + 8 * corner, true);
        context.lineTo(width / 2 + (mercatorX(lon) - x) * scale, height / 2 + (mercatorY(lat) - y) * scale);
      }
      context.closePath();
      context.strokeStyle = colour;
      context.fillStyle = colour;
      context.globalAlpha = 0.35;
      context.fill();
      context.globalAlpha = 1;
      context.stroke();
    }
  }

  #cross(context, width, height) {
    context.strokeStyle = getComputedStyle(this.points).color;
    context.lineWidth = this.ratio;
    context.beginPath();
    for (const [dx, dy] of [[10, 0], [0, 10]]) {
      context.moveTo(width / 2 - dx * this.ratio, height / 2 - dy * this.ratio);
      context.lineTo(width / 2 + dx * this.ratio, height / 2 + dy * this.ratio);
    }
    context.stroke();
  }

  #tiles() {
    if (!this.store.basemap) {
      this.#degrees();
      return;
    }
    const context = this.below.getContext("2d");
    const { width, height } = this.below;
    const { x, y, scale } = this.view;
    const zoom = clamp(Math.round(Math.log2(scale / this.ratio / TILE_PX)), 0, 18);
    const [n, px] = [2 ** zoom, scale / 2 ** zoom];
    context.clearRect(0, 0, width, height);
    for (let row = Math.floor((y - height / 2 / scale) * n); row <= Math.floor((y + height / 2 / scale) * n); row++) {
      for (let col = Math.floor((x - width / 2 / scale) * n); col <= Math.floor((x + width / 2 / scale) * n); col++) {
        if (row < 0 || col < 0 || row >= n || col >= n) continue;
        const tile = this.#tile(zoom, col, row);
        if (tile.complete && tile.naturalWidth) {
          context.drawImage(tile, width / 2 + (col / n - x) * scale, height / 2 + (row / n - y) * scale, px, px);
        }
      }
    }
  }

  // Without tiles, lines of longitude and latitude say where one looks.
  #degrees() {
    const context = this.below.getContext("2d");
    const { width, height } = this.below;
    const { x, y, scale } = this.view;
    const step = DEGREES.find((degrees) => (degrees / 360) * scale >= 110 * this.ratio) ?? DEGREES.at(-1);
    const digits = Math.max(0, Math.ceil(-Math.log10(step)));
    const [west, south, east, north] = this.box;
    context.clearRect(0, 0, width, height);
    context.strokeStyle = context.fillStyle = getComputedStyle(this.below).color;
    context.font = `${11 * this.ratio}px system-ui, sans-serif`;
    context.lineWidth = 1;
    const line = (from, to) => {
      context.globalAlpha = 0.18;
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(...to);
      context.stroke();
      context.globalAlpha = 0.75;
    };
    for (let i = Math.ceil(west / step); i * step <= east; i++) {
      const px = width / 2 + (mercatorX(i * step) - x) * scale;
      line([px, 0], [px, height]);
      context.fillText(`${Math.abs(i * step).toFixed(digits)}° ${i < 0 ? "W" : "E"}`, px + 4 * this.ratio, height - 5 * this.ratio);
    }
    for (let i = Math.ceil(south / step); i * step <= north; i++) {
      const py = height / 2 + (mercatorY(i * step) - y) * scale;
      line([0, py], [width, py]);
      context.fillText(`${Math.abs(i * step).toFixed(digits)}° ${i < 0 ? "S" : "N"}`, 5 * this.ratio, py - 4 * this.ratio);
    }
    context.globalAlpha = 1;
  }

  #tile(zoom, col, row) {
    const url = this.store.basemap.replace("{z}", zoom).replace("{x}", col).replace("{y}", row);
    let tile = this.tiles.get(url);
    if (!tile) {
      tile = new Image();
      tile.addEventListener("load", () => this.#tiles());
      tile.src = url;
      if (this.tiles.size > 400) this.tiles.clear();
      this.tiles.set(url, tile);
    }
    return tile;
  }

  // Only what the reader does changes the address: a map that follows the address leaves it as it is.
  #look(x, y, scale, byUser) {
    this.view = { x: clamp(x, 0, 1), y: clamp(y, 0, 1), scale: clamp(scale, 128, MAX_SCALE) };
    this.draw();
    clearTimeout(this.settling);
    this.settling = setTimeout(() => {
      this.#settle();
      if (byUser) this.moved();
    }, SETTLED_MS);
  }

  #zoom(factor, px = this.points.width / 2, py = this.points.height / 2) {
    const { x, y, scale } = this.view;
    const next = clamp(scale * factor, 128, MAX_SCALE);
    const [dx, dy] = [px - this.points.width / 2, py - this.points.height / 2];
    this.#look(x + dx / scale - dx / next, y + dy / scale - dy / next, next, true);
  }

  #pan(dx, dy) {
    const { x, y, scale } = this.view;
    this.#look(x - dx / scale, y - dy / scale, scale, true);
  }

  // When the map has come to rest, corners of what it shows are fetched, if that is near enough.
  #settle() {
    if (this.patchPx < FOOTPRINT_PX * this.ratio) {
      this.polygons = null;
      return;
    }
    const query = new URLSearchParams(this.wanted ?? "");
    this.box.forEach((value, i) => query.set(["west", "south", "east", "north"][i], value.toFixed(5)));
    this.fetchPolygons(query.toString()).catch(() => {
      this.polygons = null; // points do
      this.draw();
    });
  }

  // What was asked last is what counts, and not what was answered last: who goes back to a filter before the next one
  // is there gets the former.
  async #fetchSelection(signal, wanted) {
    this.selectionAsked = wanted;
    try {
      this.selected = new Uint8Array(await bytes(`/api/selection?${wanted}`, signal));
      this.wanted = wanted;
    } catch (error) {
      if (!signal.aborted) this.selectionAsked = null;
      throw error;
    }
  }

  async #fetchColours(signal, wanted) {
    const by = new URLSearchParams(wanted).get("by") ?? "";
    this.coloursAsked = wanted;
    if (by !== this.codesBy) this.#paint(null, by);
    if (!by) return;
    try {
      this.#paint(new Uint8Array(await bytes(`/api/colours?${wanted}`, signal)), by);
    } catch (error) {
      if (!signal.aborted) {
        this.coloursAsked = null;
        this.#paint(null, by);
      }
      throw error;
    }
  }

  #paint(codes, by) {
    Object.assign(this, { codes, codesBy: by });
    this.#legend();
  }

  async #fetchPolygons(signal, wanted) {
    this.polygons = await bytes(`/api/footprints?${wanted}`, signal);
    this.draw();
  }

  // Offers what patches can be coloured by, with a network chosen or without.
  #offer(branch) {
    const options = [["", "nothing"]];
    for (const column of ["split", "country", "season"]) if (this.store[column].length > 1) options.push([column, column]);
    if (branch) options.push(["outcome", "right or wrong"]);
    if (branch?.has_reliability) options.push(["reliability", "reliability"]);
    const chosen = this.colourBy.value;
    this.colourBy.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
    const there = options.some(([value]) => value === chosen);
    this.colourBy.value = there ? chosen : "";
  }

  #colourQuery(query) {
    const by = this.colourBy.value;
    if (!by) return "";
    const asked = new URLSearchParams({ by });
    if (by === "outcome" || by === "reliability") {
      asked.set("branch", query.get("branch"));
      query.getAll("label").forEach((label) => asked.append("label", label));
    }
    return asked.toString();
  }

  #colours() {
    const by = this.codesBy;
    if (by === "outcome") return this.store.outcomes.map((name) => [name, OUTCOMES[name]]);
    if (by === "reliability") {
      const steps = Array.from({ length: STEPS }, (_, i) => [i, ramp(this.store.map_colours, i / (STEPS - 1))]);
      return steps.map(([i, css]) => [`${(i / STEPS).toFixed(1)}–${((i + 1) / STEPS).toFixed(1)}`, css]);
    }
    return (this.store[by] ?? []).map((name, i) => [name, category(i)]);
  }

  #palette() {
    const rest = packed(NONE, 70);
    if (!this.codes) return { rest, of: () => packed(PLAIN), css: () => PLAIN };
    const css = Array(256).fill(NONE);
    this.#colours().slice(0, NO_COLOUR).forEach(([, colour], i) => (css[i] = hex(colour)));
    const words = Uint32Array.from(css, (colour) => packed(colour));
    return { rest, of: (i) => words[this.codes[i]], css: (i) => css[this.codes[i]] };
  }

  #legend() {
    const items = this.codes ? [...this.#colours().slice(0, 2 * CATEGORIES.length), ["no value", NONE]] : [];
    document.getElementById("legend").replaceChildren(...items.map(([name, colour]) =>
      el("span", { class: "label" }, swatch(colour), String(name))));
  }

  #pick(px, py) {
    const { x, y, scale } = this.view;
    const [dx, dy] = [px - this.points.width / 2, py - this.points.height / 2];
    const lat = latitude(y + dy / scale);
    const kmPx = (EARTH_KM * Math.cos((lat * Math.PI) / 180)) / scale;
    this.picked({ lon: longitude(x + dx / scale), lat, radiusKm: Math.max(PATCH_KM * 0.7, 6 * this.ratio * kmPx) });
  }

  #listen() {
    const { points } = this;
    const place = (event) => {
      const box = points.getBoundingClientRect();
      return [(event.clientX - box.left) * this.ratio, (event.clientY - box.top) * this.ratio];
    };
    points.addEventListener("pointerdown", (event) => {
      points.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, place(event));
      this.dragged = this.pointers.size > 1;
      this.keys = false;
    });
    points.addEventListener("pointermove", (event) => {
      const before = this.pointers.get(event.pointerId);
      if (!before) return;
      const now = place(event);
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
      if (other) {
        const distance = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
        this.#zoom(distance(now) / Math.max(distance(before), 1), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      } else if (this.dragged || Math.hypot(now[0] - before[0], now[1] - before[1]) > 4 * this.ratio) {
        this.dragged = true;
        this.#pan(now[0] - before[0], now[1] - before[1]);
      } else return;
      this.pointers.set(event.pointerId, now);
    });
    points.addEventListener("pointerup", (event) => {
      if (this.pointers.delete(event.pointerId) && !this.dragged) this.#pick(...place(event));
    });
    points.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
    points.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.#zoom(Math.exp(-clamp(event.deltaY, -300, 300) / 300), ...place(event));
    }, { passive: false });
    points.addEventListener("keydown", (event) => this.#onKey(event));
    points.addEventListener("blur", () => {
      this.keys = false;
      this.draw();
    });
    document.getElementById("zoom-in").addEventListener("click", () => this.#zoom(2));
    document.getElementById("zoom-out").addEventListener("click", () => this.#zoom(0.5));
    document.getElementById("zoom-fit").addEventListener("click", () => this.fit(true));
    this.colourBy.addEventListener("change", this.guarded(() =>
      this.fetchColours(this.#colourQuery(this.query())).finally(() => this.draw())));
    new ResizeObserver(() => this.resize()).observe(points.parentElement);
  }

  #onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [w, h] = [this.points.width / 8, this.points.height / 8];
    const keys = {
      ArrowLeft: () => this.#pan(w, 0), ArrowRight: () => this.#pan(-w, 0), ArrowUp: () => this.#pan(0, h),
      ArrowDown: () => this.#pan(0, -h), "+": () => this.#zoom(2), "=": () => this.#zoom(2), "-": () => this.#zoom(0.5),
      0: () => this.fit(true), Enter: () => this.#pick(this.points.width / 2, this.points.height / 2),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    this.keys = event.key !== "Enter";
    keys[event.key]();
  }
}

function hex(colour) {
  if (colour.startsWith("#")) return colour;
  return `#${colour.match(/\d+/g).map((value) => Number(value).toString(16).padStart(2, "0")).join("")}`;
}
