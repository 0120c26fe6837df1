// Filters and sorts the answers. Without scripts they stand as they were written, and these controls are not shown.
"use strict";
const controls = document.getElementById("controls");
const answers = [...document.querySelectorAll("article")];
const number = (name) => (article) => Number(article.dataset[name]);
const ascending = (key) => (a, b) => key(a) - key(b);
const orders = {
  page: () => 0,
  "reward-down": (a, b) => number("reward")(b) - number("reward")(a),
  "reward-up": ascending(number("reward")),
  "step-down": (a, b) => number("step")(b) - number("step")(a),
  "step-up": ascending(number("step")),
};
function show() {
  const wanted = controls.elements["kind"].value;
  const order = orders[controls.elements["order"].value];
  let shown = 0;
  // Sorting is stable: what is equal stays in the order of the page.
  for (const article of [...answers].sort(order)) {
    article.hidden = wanted !== "all" && !article.dataset.kinds.split(" ").includes(wanted);
    shown += article.hidden ? 0 : 1;
    controls.parentNode.append(article);
  }
  controls.querySelector("output").textContent = `${shown} of ${answers.length}`;
}
controls.hidden = false;
controls.addEventListener("change", show);
controls.addEventListener("submit", (event) => event.preventDefault());
show();
