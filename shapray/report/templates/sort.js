"use strict";
// Sorts a table by the column whose head is pressed; what has no value stays at the end.
document.addEventListener("click", (event) => {
  const button = event.target.closest("thead button");
  if (!button) return;
  const head = button.parentElement;
  const place = head.cellIndex;
  const body = head.closest("table").tBodies[0];
  const numeric = head.classList.contains("n");
  const now = head.getAttribute("aria-sort");
  const down = now ? now === "ascending" : numeric;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => {
    const cell = row.cells[place];
    return cell.dataset.v ?? (numeric ? undefined : cell.textContent);
  };
  const compared = (a, b) =>
    numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true });
  const rows = [...body.rows].sort((left, right) => {
    const a = value(left), b = value(right);
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return down ? compared(b, a) : compared(a, b);
  });
  body.append(...rows);
});
// What a link leads to is not folded away.
const follow = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", follow);
follow();
