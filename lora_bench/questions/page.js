// The page's own arithmetic: the words of `lora_bench.verdicts.stats`, for another margin or level. Scores are in points.

function logGamma(x) {  // Lanczos 1964, g = 7
  const terms = [0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
    12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7];
  if (x < 0.5) return Math.log(Math.PI / Math.sin(Math.PI * x)) - logGamma(1 - x);
  const base = x + 6.5;
  const sum = terms.reduce((total, term, place) => place ? total + term / (x - 1 + place) : term, 0);
  return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(base) - base + Math.log(sum);
}

function incompleteBeta(x, a, b) {  // regularised, by Lentz's continued fraction
  if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a);
  const least = 1e-300, front = Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log(1 - x)) / a;
  let c = 1, d = 1 - (a + b) * x / (a + 1);
  d = 1 / (Math.abs(d) < least ? least : d);
  let value = d;
  for (let m = 1; m < 500; m++) {
    for (const step of [m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)), -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))]) {
      d = 1 + step * d; d = 1 / (Math.abs(d) < least ? least : d);
      c = 1 + step / c; c = Math.abs(c) < least ? least : c;
      value *= c * d;
    }
    if (Math.abs(c * d - 1) < 1e-15) break;
  }
  return front * value;
}

function studentCdf(t, freedom) {
  const tail = 0.5 * incompleteBeta(freedom / (freedom + t * t), freedom / 2, 0.5);
  return t > 0 ? 1 - tail : tail;
}

function studentQuantile(p, freedom) {  // p > 0.5, by halving
  let low = 0, high = 1;
  while (studentCdf(high, freedom) < p) high *= 2;
  for (let step = 0; step < 100; step++) {
    const middle = (low + high) / 2;
    if (studentCdf(middle, freedom) < p) low = middle; else high = middle;
  }
  return (low + high) / 2;
}

function logChoose(n, k) { return logGamma(n + 1) - logGamma(k + 1) - logGamma(n - k + 1); }

function sharesP(nFirst, nSecond, nSeeds) {  // Fisher's exact test of who learns, each side doubled
  const learn = nFirst + nSecond, low = Math.max(0, learn - nSeeds), high = Math.min(learn, nSeeds);
  let fewer = 0, more = 0;
  for (let k = low; k <= high; k++) {
    const mass = Math.exp(logChoose(nSeeds, k) + logChoose(nSeeds, learn - k) - logChoose(2 * nSeeds, learn));
    if (k <= nFirst) fewer += mass;
    if (k >= nFirst) more += mass;
  }
  return [Math.min(1, 2 * fewer), Math.min(1, 2 * more)];
}

function holm(ps) {  // a NaN stays NaN and still counts as a member of the family
  const order = ps.map((p, place) => [Number.isNaN(p) ? 1 : p, place]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const adjusted = new Array(ps.length);
  let highest = 0;
  order.forEach(([p, place], rank) => {
    highest = Math.max(highest, p * (ps.length - rank));
    adjusted[place] = Number.isNaN(ps[place]) ? NaN : Math.min(1, highest);
  });
  return adjusted;
}

// A pair: first and second score of every shared seed; null where the seed predicts one class or diverged.
function tested(pair, margin, level, minPairs) {
  const learn = pair.first.map((score, seed) => score !== null && pair.second[seed] !== null);
  const first = pair.first.filter((_, seed) => learn[seed]), second = pair.second.filter((_, seed) => learn[seed]);
  const differences = first.map((score, place) => score - second[place]), n = differences.length;
  const result = {n, mean: NaN, low: NaN, high: NaN, p: NaN, pTied: NaN};
  if (n === 0) return result;
  result.mean = differences.reduce((a, b) => a + b, 0) / n;
  if (n < 2) return result;
  const spread = Math.sqrt(differences.reduce((sum, d) => sum + (d - result.mean) ** 2, 0) / (n - 1));
  const range = (values) => Math.max(...values) - Math.min(...values);
  if (range(differences) <= 1e-9 * Math.max(...differences.map(Math.abs), 1e-7)) {
    if (n >= minPairs) {
      result.p = Math.abs(result.mean) > 0 ? 2 ** (1 - n) : 1;
      result.pTied = range(first) === 0 && range(second) === 0 ? 1 : Math.abs(result.mean) < margin ? 2 ** -n : 1;
    }
    return result;
  }
  const error = spread / Math.sqrt(n), half = error * studentQuantile((1 + level) / 2, n - 1);
  result.low = result.mean - half; result.high = result.mean + half;
  if (n >= minPairs) {
    result.p = 2 * studentCdf(-Math.abs(result.mean) / error, n - 1);
    result.pTied = studentCdf((Math.abs(result.mean) - margin) / error, n - 1);
  }
  return result;
}

function asked(pair, result) {
  const stuckFirst = pair.first.filter((score) => score === null).length;
  const stuckSecond = pair.second.filter((score) => score === null).length;
  const word = result.mean > 0 ? "better" : "worse";
  if (stuckFirst + stuckSecond === 0) return [result.p, result.pTied, word];
  const n = pair.first.length, [fewer, more] = sharesP(n - stuckFirst, n - stuckSecond, n);
  const share = Math.min(1, 2 * Math.min(fewer, more)), tied = Math.min(1, 2 * result.pTied);
  if (!(2 * result.p <= share)) return [share, tied, more < fewer ? "learns more often" : "learns less often"];
  return [2 * result.p, tied, word];
}

// The word of every pair of a family, Holm-corrected at `level`; `fixed` words (did not learn, missing) have no test.
function judge(pairs, margin, level, minPairs) {
  const results = pairs.map((pair) => tested(pair, margin, level, minPairs));
  const questions = pairs.map((pair, place) => pair.fixed ? [NaN, NaN, pair.fixed] : asked(pair, results[place]));
  const different = holm(questions.map((each) => each[0])), tied = holm(questions.map((each) => each[1]));
  return results.map((result, place) => ({
    ...result, p: different[place], pTied: tied[place],
    word: pairs[place].fixed || (different[place] < 1 - level ? questions[place][2] : tied[place] < 1 - level ? "tied" : "unresolved"),
  }));
}

// The words of every pair of cells, in the order of the cells, as one family: cells hold a score or null by seed.
function everyPair(cells, margin, level, minPairs) {
  const pairs = [];
  cells.forEach((one, place) => {
    for (const other of cells.slice(place + 1)) {
      const seeds = Object.keys(one.scores).filter((seed) => seed in other.scores).sort((a, b) => a - b);
      const [first, second] = [one, other].map((cell) => seeds.map((seed) => cell.scores[seed]));
      const fixed = one.flat || other.flat ? "did not learn" : seeds.length === 0 ? "missing" : null;
      pairs.push({names: [one.name, other.name], seeds, first, second, fixed});
    }
  });
  return judge(pairs, margin, level, minPairs).map((result, place) => ({...pairs[place], ...result}));
}

// ---------------------------------------------------------------- the page

function wire(state) {
  document.documentElement.classList.add("scripted");
  wireWithin(document, state);
  document.addEventListener("scroll", ({target}) => { if (target.classList?.contains("wide")) atEnd(target); }, {capture: true, passive: true});
  const filters = document.querySelector(".filters");
  if (filters) filters.addEventListener("input", () => narrow(filters));
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-copy]");
    if (button) copy(button);
  });
  const held = [...document.querySelectorAll(".held")];
  for (const box of held) box.addEventListener("toggle", () => { if (box.open) unfold(box, state); });
  const all = document.querySelector(".unfold");
  if (all) all.addEventListener("click", () => held.forEach((box) => { box.open = true; }));
  addEventListener("hashchange", () => open(state));
  addEventListener("beforeprint", () => document.querySelectorAll(".pair").forEach((pair) => { pair.open = true; }));
  open(state);
}

function wireWithin(box, state) {
  for (const family of box.querySelectorAll(".family")) wireFamily(family);
  for (const form of box.querySelectorAll(".two")) wireTwo(form);
  for (const table of box.querySelectorAll("table.sortable")) wireTable(table);
  for (const scroll of box.querySelectorAll(".scroll")) widths.observe(scroll);
  for (const link of box.querySelectorAll(".permalink")) link.setAttribute("href", link.getAttribute("href") + "@" + state);
}

// What is wider than its box says so; a frame later, since what it says makes the box higher.
const widths = globalThis.ResizeObserver && new ResizeObserver((entries) => requestAnimationFrame(() => {
  const boxes = entries.map(({target}) => {
    const cells = [...(target.querySelector("table.sortable tbody tr")?.cells || [])].slice(0, 2);
    const [first, second] = cells.map((cell) => cell.offsetWidth);
    const areNames = cells.length === 2 && cells.every((cell) => cell.className === "");
    return {target, first, isWide: target.scrollWidth > target.clientWidth + 1, areTwo: areNames && first + second < 0.5 * target.clientWidth};
  });
  for (const {target, first, isWide, areTwo} of boxes) {
    target.classList.toggle("wide", isWide);
    atEnd(target);
    const table = target.querySelector("table.sortable");
    if (!table) continue;
    table.classList.toggle("two-stay", isWide && areTwo);  // a contrast is read by both its names
    table.style.setProperty("--first", `${first}px`);
  }
}));

function atEnd(box) { box.classList.toggle("end", box.scrollLeft + box.clientWidth >= box.scrollWidth - 1); }

async function unfold(held, state) {  // a setting of a crowded page, which is kept compressed until it is opened
  const packed = held.dataset.packed;
  if (!packed) return;
  delete held.dataset.packed;
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const box = document.createElement("div");
  box.innerHTML = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  wireWithin(box, state);
  held.append(box);
  const filters = document.querySelector(".filters");
  if (filters) narrow(filters);
}

async function open(state) {  // what a link names; one from another state of the store says so
  const [anchor, from] = decodeURIComponent(location.hash.slice(1)).split("@");
  const held = document.getElementById(anchor) ? null
    : [...document.querySelectorAll(".held[data-packed]")].find((box) => box.dataset.holds.split(" ").includes(anchor));
  if (held) { await unfold(held, state); held.open = true; }
  const place = document.getElementById(anchor);
  if (!place) return;
  const around = place.closest(".held");
  if (around) around.open = true;
  if (place.tagName === "DETAILS") place.open = true;
  if (from || around) place.scrollIntoView();
  if (from && from !== state && !place.querySelector(".stale")) {
    const note = document.createElement("p");
    note.className = "stale";
    note.textContent = `The link was made when the store held other results (${from}); this page is of ${state}.`;
    place.append(note);
  }
}

function wireTable(table) {  // a head sorts its column
  const body = table.tBodies[0];
  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const head = button.parentElement, place = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const each of head.parentElement.cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[place].dataset.key;
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    });
    body.append(...rows);
  });
}

async function copy(button) {
  const label = button.dataset.label || button.textContent;
  button.dataset.label = label;
  try { await navigator.clipboard.writeText(button.dataset.copy); button.textContent = "copied"; }
  catch { getSelection().selectAllChildren(button.closest("details, form").querySelector(".copied")); button.textContent = "marked: copy it"; }
  setTimeout(() => { button.textContent = label; }, 2000);
}

function wireFamily(family) {
  const {pairs, margin, level, minPairs} = JSON.parse(family.dataset.family), form = family.querySelector(".what-if");
  const words = [...family.querySelectorAll(".pair .word")], declared = words.map((word) => word.textContent);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    const asked = {margin: Number(form.margin.value), level: Number(form.level.value)};
    form.querySelector("output").textContent = asked.margin;
    const isDeclared = Math.abs(asked.margin - margin) < 1e-9 && asked.level === level;
    const judged = isDeclared ? null : judge(pairs, asked.margin, asked.level, minPairs);
    words.forEach((word, place) => {
      const text = judged ? judged[place].word : declared[place];
      word.textContent = text;
      word.className = "word " + text + (text === declared[place] ? "" : " changed");
    });
    form.querySelector(".declared").textContent = isDeclared ? "as declared"
      : `what the words would be; declared: ${margin} points, ${100 * level} %. A margin chosen after the scores were seen proves nothing`;
  });
}

function narrow(form) {  // show what has the backbone, task and method that are asked for
  const asked = [...new FormData(form)].filter(([, value]) => value !== "");
  const has = (node, [name, value]) => !(name in node.dataset) || node.dataset[name].split(name === "method" ? " " : "\n").includes(value);
  for (const node of document.querySelectorAll("[data-backbone], [data-method]")) node.hidden = !asked.every((pair) => has(node, pair));
  const parts = [...document.querySelectorAll(".part")], shown = parts.filter((part) => !part.hidden).length;
  form.querySelector(".declared").textContent = asked.length ? `${shown} of ${parts.length} settings shown` : "";
}

const signed = (x) => Number.isFinite(x) ? (x < 0 ? "\u2212" : "+") + Math.abs(x).toFixed(1) : "\u2013";
const small = (p) => p < 0.001 ? "< .001" : p.toFixed(p < 0.1 ? 3 : 2).replace(/^0/, "");

function wireTwo(form) {
  const {cells, margin, level, minPairs, title, metric} = JSON.parse(form.dataset.two);
  const pairs = everyPair(cells, margin, level, minPairs);
  const say = () => {
    const [first, second] = [form.first.value, form.second.value], told = form.querySelector(".copied"), drawn = form.querySelector(".drawn");
    drawn.replaceChildren();
    if (first === second) { told.textContent = "Choose two that differ."; return; }
    const pair = pairs.find(({names}) => names.includes(first) && names.includes(second));
    const isTurned = pair.names[0] !== first, sign = isTurned ? -1 : 1;
    const [ours, theirs] = isTurned ? [pair.second, pair.first] : [pair.first, pair.second];
    const [low, high] = isTurned ? [-pair.high, -pair.low] : [pair.low, pair.high];
    const band = Number.isFinite(low) ? ` (95 % interval ${signed(low)} to ${signed(high)}, ${pair.n} pairs of seeds, Holm p ${small(pair.p)})` : "";
    told.textContent = `On ${title}, ${first} minus ${second} is ${signed(sign * pair.mean)} points of ${metric}${band}, `
      + `a family of all ${pairs.length} pairs: ${isTurned ? turned(pair.word) : pair.word}.`;
    form.querySelector(".of-two").dataset.copy = told.textContent;
    if (pair.n) drawn.append(drawPair(pair.seeds, ours, theirs, first, second));
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", say);
  say();
}

function turned(word) {  // what is said of the second
  return {better: "worse", worse: "better", "learns more often": "learns less often", "learns less often": "learns more often"}[word] || word;
}

function drawPair(seeds, ours, theirs, first, second) {
  const make = (name, places, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(places)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const known = [...ours, ...theirs].filter((score) => score !== null), low = Math.min(...known), width = Math.max(...known) - low || 1;
  const across = (score) => 8 + 84 * (score - low) / width;
  const svg = make("svg", {class: "dots", viewBox: "0 0 100 26", role: "img", "aria-label": `Scores of ${first} and ${second}, seed by seed`});
  seeds.forEach((seed, place) => {
    if (ours[place] === null || theirs[place] === null) return;
    const group = make("g", theirs[place] < ours[place] ? {} : {class: "rises"}), [x1, x2] = [across(ours[place]), across(theirs[place])];
    group.append(make("title", {}, `seed ${seed}: ${ours[place].toFixed(1)}, ${theirs[place].toFixed(1)}`), make("line", {x1, y1: 7, x2, y2: 19}),
      make("circle", {cx: x1, cy: 7, r: 0.9}), make("circle", {cx: x2, cy: 19, r: 0.9}));
    svg.append(group);
  });
  svg.append(make("text", {x: 1, y: 3}, `${first}, from ${low.toFixed(1)} to ${(low + width).toFixed(1)}`), make("text", {x: 1, y: 25}, second));
  return svg;
}
