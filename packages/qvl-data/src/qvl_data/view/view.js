// The page of `qvl-data view --browser`. Whatever comes from the data is set as text, never as HTML.

const $ = (id) => document.getElementById(id);
const state = { about: null, sample: null, asked: 0 };

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function say(text) {
  $("status").textContent = text;
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.map((child) => (typeof child === "number" ? String(child) : child)));
  return made;
}

function drawn(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// --- showing a sample

async function show(index) {
  const asked = ++state.asked;
  const sample = await ask(`sample/${index}`);
  if (asked !== state.asked) return; // a later sample was asked for meanwhile
  state.sample = sample;
  history.replaceState(null, "", `#${index}`);
  $("index").value = index;
  $("total").textContent = `of ${sample.total - 1}`;
  $("id").textContent = sample.id || "unreadable";
  $("problem").textContent = sample.error ?? "";
  $("problem").hidden = !sample.error;
  $("talk").replaceChildren(...instructions(sample), ...(sample.messages ?? []).map((turn) => spoken(turn, sample)));
  $("stage").replaceChildren(...pictures(sample));
  $("facts").replaceChildren(...facts(sample));
  document.querySelector("#words").scrollTop = 0;
  showMark();
  say("");
}

function showMark() {
  const { mark, comment, counts, task } = state.sample;
  $("accept").setAttribute("aria-pressed", mark === "accept");
  $("reject").setAttribute("aria-pressed", mark === "reject");
  if (document.activeElement !== $("comment")) $("comment").value = comment;
  const verdict = { accept: "accepted", reject: "rejected" }[mark];
  const badges = [task && element("span", { class: "badge" }, task)];
  if (verdict) badges.push(element("span", { class: `badge ${mark}` }, verdict));
  $("badges").replaceChildren(...badges.filter(Boolean));
  $("counts").replaceChildren(
    element("span", { class: "accept", title: "accepted" }, `✓ ${counts.accept}`),
    element("span", { class: "reject", title: "rejected" }, `✗ ${counts.reject}`),
    element("span", { title: "with a comment" }, `✎ ${counts.comment}`),
  );
}

function spoken(turn, sample) {
  const said = element("div", { class: "said", dir: "auto" });
  for (const part of turn.parts) {
    if (part.text !== undefined) said.append(part.text);
    else if (part.media !== undefined) said.append(element("span", { class: "chip" }, `${part.type} ${part.media}`));
    else said.append((part.regions ?? []).map((number) => region(sample.regions[number])).join(", "));
  }
  const role = element("div", { class: "role" }, turn.learned ? `${turn.role} · learned from` : turn.role);
  return element("div", { class: turn.learned ? "turn learned" : "turn" }, role, said);
}

function region({ kind, xy, label }) {
  return `\u2068${label ?? kind}\u2069 (${xy.map((value) => Math.round(value * 100) / 100).join(", ")})`;
}

function instructions(sample) {
  const said = [];
  for (const name of ["instruction", "inverse"]) {
    for (const [language, text] of Object.entries(sample.edit?.[name] ?? {})) {
      said.push(spoken({ role: `${name} · ${language}`, parts: [{ text }] }, sample));
    }
  }
  return said;
}

function facts(sample) {
  const known = { place: sample.place, ...sample.meta };
  return Object.entries(known).flatMap(([name, value]) => [element("dt", {}, name), element("dd", { dir: "auto" }, value)]);
}

function pictures(sample) {
  const shown = (sample.media ?? []).map((media, number) => ({ ...media, number })).filter((media) => !media.frame);
  if (!shown.length) return [element("p", { class: "nothing" }, sample.error ? "" : "No pictures")];
  return shown.map((media) => figure(sample, media, shown.length));
}

function figure(sample, media, count) {
  const role = sample.edit && (media.number === sample.edit.target ? "target" : "source");
  const size = media.width ? `${media.width} × ${media.height}` : "";
  const words = [count > 1 && !role ? media.number : "", role, media.name, size].filter((word) => word !== "" && word != null);
  const caption = element("figcaption", { dir: "auto" }, words.join(" · "));
  if (media.error) return element("figure", {}, element("p", { class: "broken", dir: "auto" }, media.error), caption);
  const frame = element("div", { class: "picture" });
  const img = element("img", { src: `media/${sample.index}/${media.number}`, alt: media.name });
  if (!media.width) img.addEventListener("load", () => fit(img, media, count));
  img.addEventListener("error", async () => {
    const answer = await fetch(img.src);
    if (!answer.ok) frame.replaceWith(element("p", { class: "broken", dir: "auto" }, await answer.text()));
  });
  frame.append(img);
  const regions = sample.regions.filter((one) => one.media === media.number);
  if (media.width && regions.length) frame.append(...shapes(regions, media));
  const whole = element("figure", {}, frame, caption);
  if (media.width) fit(img, media, count); // before it loads, so that nothing moves when it does
  return whole;
}

// Small pictures are enlarged by whole steps with hard edges, up to about the size of the stage.
function fit(img, media, count) {
  const room = $("stage").getBoundingClientRect();
  const width = (room.width - 40) / Math.min(count, 2) - 20;
  const height = Math.max(0.42 * innerHeight, Math.min(room.height || 600, innerHeight) - 90);
  const own = [media.width ?? img.naturalWidth, media.height ?? img.naturalHeight];
  const scale = Math.min(width / own[0], height / own[1]);
  const used = scale > 1 ? Math.min(scale, Math.max(1, 640 / Math.max(...own))) : scale;
  img.style.width = `${Math.round(own[0] * used)}px`;
  img.style.aspectRatio = `${own[0]} / ${own[1]}`;
  img.closest("figure").style.width = `${Math.max(140, Math.round(own[0] * used))}px`;
  img.parentElement.classList.toggle("tiny", used >= 3);
}

function shapes(regions, { width, height }) {
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  const labels = regions.map(({ kind, xy, label }, number) => {
    const colour = `c${number % 6}`;
    const [x1, y1, x2, y2] = xy;
    if (kind === "box") svg.append(drawn("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: colour }));
    else if (kind === "point") svg.append(drawn("path", { d: `M${x1} ${y1}h0`, class: `point ${colour}` }));
    else svg.append(drawn("polygon", { points: xy.join(" "), class: colour }));
    if (!label) return null;
    const left = Math.min(...xy.filter((_, place) => place % 2 === 0)) / width;
    const top = Math.min(...xy.filter((_, place) => place % 2 === 1)) / height;
    const where = kind === "point" ? "beside" : top * height < 0.05 * width ? "inside" : "above";
    const name = element("span", { class: `label ${where} ${colour}`, dir: "auto" }, label);
    name.style.left = `${100 * Math.min(Math.max(left, 0), 0.9)}%`;
    name.style.top = `${100 * Math.min(Math.max(top, 0), 1)}%`;
    return name;
  });
  return [svg, ...labels.filter(Boolean)];
}

// --- going from sample to sample

async function go(step, from = state.sample.index + step) {
  if (from < 0 || from >= state.about.total) return say(step > 0 ? "That was the last sample." : "That was the first sample.");
  const query = new URLSearchParams($("filter").value);
  query.set("text", $("text").value);
  if (step < 0) query.set("back", "1");
  const asked = ++state.asked;
  for (let at = from; ; ) {
    query.set("from", at);
    const found = await ask(`find?${query}`);
    if (asked !== state.asked) return undefined;
    if (found.index !== null) return show(found.index);
    if (!found.more) return say("No further sample fits.");
    at = found.at;
    say(`searching … ${at} of ${state.about.total}`);
  }
}

async function searchFromHere() {
  const here = state.sample.index;
  await go(1, here);
  if ($("status").textContent.startsWith("No further")) await go(1, 0);
}

// --- marks

async function mark(verdict, comment = state.sample.comment) {
  const sample = state.sample;
  const body = JSON.stringify({ index: sample.index, mark: verdict, comment });
  const counts = await ask("mark", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  Object.assign(sample, { mark: verdict, comment, counts });
  if (sample === state.sample) showMark();
}

async function decide(verdict) {
  const again = state.sample.mark === verdict;
  await mark(again ? "" : verdict);
  if (!again) await go(1);
}

function safely(work) {
  return (...given) => Promise.resolve(work(...given)).catch((error) => say(`${error.message || error}`));
}

const keys = {
  ArrowRight: () => go(1),
  ArrowLeft: () => go(-1),
  j: () => go(1),
  k: () => go(-1),
  a: () => decide("accept"),
  r: () => decide("reject"),
  u: () => mark(""),
  b: () => document.body.classList.toggle("bare"),
  c: () => $("comment").focus(),
  "/": () => $("text").focus(),
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return document.activeElement.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return undefined;
  const action = keys[event.key];
  if (!action || !state.sample) return undefined;
  event.preventDefault();
  return safely(action)();
});
$("next").addEventListener("click", safely(() => go(1)));
$("previous").addEventListener("click", safely(() => go(-1)));
$("accept").addEventListener("click", safely(() => decide("accept")));
$("reject").addEventListener("click", safely(() => decide("reject")));
$("comment").addEventListener("change", safely(() => mark(state.sample.mark, $("comment").value)));
$("comment").addEventListener("keydown", (event) => event.key === "Enter" && event.target.blur());
$("text").addEventListener("change", safely(searchFromHere));
$("text").addEventListener("keydown", (event) => event.key === "Enter" && event.target.blur());
$("filter").addEventListener("change", safely(async () => {
  $("filter").blur();
  await searchFromHere();
}));
$("jump").addEventListener("submit", safely(async (event) => {
  event.preventDefault();
  $("index").blur();
  await show(Number.parseInt($("index").value, 10) || 0);
}));
addEventListener("hashchange", safely(() => show(Number.parseInt(location.hash.slice(1), 10) || 0)));

safely(async () => {
  state.about = await ask("about");
  const { file, reasons, total, start } = state.about;
  $("file").textContent = file.split(/[\\/]/).slice(-2).join("/");
  $("file").title = file;
  document.title = `${$("file").textContent} · qvl-data view`;
  $("filter").append(...reasons.map((reason) => element("option", { value: `reason=${reason}` }, reason)));
  const asked = Number.parseInt(location.hash.slice(1), 10);
  await show(asked >= 0 && asked < total ? asked : start);
})();
