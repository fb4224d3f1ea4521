// Two pictures of the same ground, one over the other, with a slider between them.

import { el, picture } from "./dom.js";

export function compare(before, after) {
  const over = picture(after.source, after.alt, { class: "over" });
  const slider = el("input", {
    type: "range", min: "0", max: "100", value: "50", "aria-label": `${before.title} to ${after.title}: where they meet`,
  });
  const line = el("span", { class: "line", "aria-hidden": "true" });
  const stage = el("div", { class: "stage" }, picture(before.source, before.alt), over, line);
  const show = () => {
    over.style.clipPath = `inset(0 0 0 ${slider.value}%)`;
    line.style.left = `${slider.value}%`;
    slider.setAttribute("aria-valuetext", `${slider.value} % ${before.title}, the rest ${after.title}`);
  };
  const drag = (event) => {
    const { left, width } = stage.getBoundingClientRect();
    slider.value = Math.round((100 * (event.clientX - left)) / width);
    show();
  };
  slider.addEventListener("input", show);
  stage.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", (event) => stage.hasPointerCapture(event.pointerId) && drag(event));
  show();
  return el("figure", { class: "compare" }, stage, slider,
    el("figcaption", {}, el("span", {}, before.title), el("span", {}, after.title)));
}
