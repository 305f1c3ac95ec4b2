"use strict";
const root = document.documentElement;
const say = (text) => { document.querySelector(".status").textContent = text; };

// Theme: the system's until a choice is made. Storage may be forbidden to local files; the page works without it.
const stored = () => { try { return localStorage.getItem("holdfast-theme"); } catch { return null; } };
const keep = (name) => { try { localStorage.setItem("holdfast-theme", name); } catch { /* not remembered */ } };
const dark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const theme = document.getElementById("theme");
const label = () => { theme.textContent = dark() ? "Light" : "Dark"; theme.setAttribute("aria-label", dark() ? "Use light colours" : "Use dark colours"); };
if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; keep(root.dataset.theme); label(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
label();

// Tables: a click or key press on a head sorts by it, numbers before words, empty cells always last.
const text = new Intl.Collator("en", { numeric: true });
const key = (row, column) => { const cell = row.cells[column]; return cell.dataset.key === undefined ? cell.textContent.trim() : Number(cell.dataset.key); };
const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : typeof a === "number" ? -1 : typeof b === "number" ? 1 : text.compare(a, b);
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const empty = (value) => value === "" || value === "–";
    const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
    rows.sort(([a], [b]) => empty(a) || empty(b) ? empty(a) - empty(b) : (down ? -1 : 1) * order(a, b));
    table.tBodies[0].append(...rows.map(([, row]) => row));
    say(`Sorted by ${head.textContent.trim()}, ${down ? "descending" : "ascending"}`);
  }));
}

// Commands: copy, or select where the clipboard is out of reach.
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    say(`${button.textContent}: ${code.textContent}`);
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  });
}

// Details: all at once, and all on paper.
const folded = () => [...document.querySelectorAll("main details")];
const fold = document.getElementById("fold");
fold.addEventListener("click", () => {
  const open = fold.getAttribute("aria-pressed") !== "true";
  for (const one of folded()) one.open = open;
  fold.setAttribute("aria-pressed", String(open));
  fold.textContent = open ? "Close all details" : "Open all details";
});
let opened = [];
addEventListener("beforeprint", () => { opened = folded().filter((one) => !one.open); for (const one of opened) one.open = true; });
addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
document.getElementById("print").addEventListener("click", () => print());

// Contents: folded away on small screens, and marking where the reader is.
const contents = document.querySelector(".toc details");
if (matchMedia("(max-width: 1099px)").matches) contents.open = false;
contents.addEventListener("click", (event) => { if (event.target.closest("a") && matchMedia("(max-width: 1099px)").matches) contents.open = false; });
const links = new Map([...document.querySelectorAll(".toc a")].map((link) => [link.hash.slice(1), link]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(entry.target.id)?.setAttribute("aria-current", "location");
  }
}, { rootMargin: "-10% 0px -80% 0px" });
for (const section of document.querySelectorAll("main > section")) seen.observe(section);
