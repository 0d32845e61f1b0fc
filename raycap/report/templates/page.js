"use strict";
// Search, filter and sort what is on the page already; without this script everything is shown in its order.
(() => {
  const form = document.getElementById("controls");
  const gallery = document.getElementById("gallery");
  if (!form || !gallery) return;
  const items = Array.from(gallery.children, (element, place) => ({
    element,
    place,
    text: element.textContent.toLowerCase(),
    statuses: element.dataset.status.split(" "),
    flags: element.dataset.flags.split(" "),
    values: element.dataset.values.split(",").map((value) => (value === "" ? NaN : Number(value))),
  }));
  const field = (name) => form.elements[name];
  const bound = (name, otherwise) => (field(name).value === "" ? otherwise : Number(field(name).value));

  const show = () => {
    const words = field("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const status = field("status") ? field("status").value : "";
    const flag = field("flag") ? field("flag").value : "";
    const measure = field("measure").value;
    const measured = measure !== "";
    for (const label of form.querySelectorAll(".sorted")) label.hidden = !measured;
    for (const name of ["order", "from", "to"]) field(name).disabled = !measured;
    const from = bound("from", -Infinity);
    const to = bound("to", Infinity);
    const limited = measured && (from > -Infinity || to < Infinity);
    const value = (item) => item.values[Number(measure)];
    const fits = (item) =>
      words.every((word) => item.text.includes(word)) &&
      (status === "" || item.statuses.includes(status)) &&
      (flag === "" || item.flags.includes(flag)) &&
      (!limited || (value(item) >= from && value(item) <= to));
    const up = field("order").value === "up" ? 1 : -1;
    const byMeasure = (one, other) => {
      const [mine, theirs] = [value(one), value(other)];
      if (Number.isNaN(mine) || Number.isNaN(theirs)) return Number.isNaN(mine) - Number.isNaN(theirs);
      return up * (mine - theirs) || one.place - other.place;
    };
    const order = measured ? [...items].sort(byMeasure) : items;
    let count = 0;
    for (const item of order) {
      const fit = fits(item);
      item.element.hidden = !fit;
      count += fit;
    }
    gallery.append(...order.map((item) => item.element));
    field("count").value = `${count} of ${items.length} pictures`;
    document.getElementById("none").hidden = count > 0;
  };

  let waiting = 0;
  const soon = () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(show);
  };
  form.addEventListener("input", soon);
  form.addEventListener("change", soon); // not every browser tells of a choice from a list as input
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(show));
  document.getElementById("all").addEventListener("click", () => {
    form.reset();
    field("search").focus();
  });
  form.hidden = false;
  show();
})();
